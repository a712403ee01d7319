"""What the pool controller, its messages and the plugin rely on."""

from __future__ import annotations

from tests.contract.needs import (
    Attributes,
    Base,
    Calls,
    Fields,
    Names,
    Options,
    Order,
    Signature,
    Value,
)
from tests.contract.row import row

CONTROLLER = "sglang.srt.managers.data_parallel_controller"
CLASS = "DataParallelController"
ENGINE = "sglang.srt.entrypoints.engine"
IO = "sglang.srt.managers.io_struct"
NETWORK = "sglang.srt.utils.network"
REGISTRY = "sglang.srt.plugins.hook_registry"
TOKENIZER = "sglang.srt.managers.tokenizer_manager"
STATS = "sglang.srt.observability.req_time_stats"
UTILS = "sglang.srt.disaggregation.utils"

ROWS = (
    # -- the controller process -----------------------------------------------------------------
    row(
        "pool.controller pool.process",
        "built by position in the controller process",
        Signature(
            CONTROLLER,
            f"{CLASS}.__init__",
            ("server_args", "port_args", "run_scheduler_process_func"),
            exact=True,
        ),
    ),
    row(
        "pool.process platforms.controller",
        "called by us with its own parameters",
        Signature(
            CONTROLLER,
            "run_data_parallel_controller_process",
            ("server_args", "port_args", "pipe_writer", "run_scheduler_process_func"),
            exact=True,
        ),
    ),
    row(
        "pool.process",
        "looks its class up in its module, tells its limits, then serves",
        Order(
            CONTROLLER,
            "run_data_parallel_controller_process",
            (
                f"controller = {CLASS}(server_args, port_args, run_scheduler_process_func)",
                "controller.max_req_input_len",
                "controller.event_loop()",
            ),
        ),
    ),
    row(
        "hooks pool.process platforms.controller",
        "the launching process names the target by this global and passes these arguments",
        Order(
            ENGINE,
            "Engine._launch_scheduler_processes",
            (
                "target=run_data_parallel_controller_process",
                "server_args=server_args",
                "port_args=port_args",
                "pipe_writer=writer",
                "run_scheduler_process_func=run_scheduler_process_func",
            ),
        ),
    ),
    row(
        "hooks platforms.controller",
        "the global that is replaced",
        Names(ENGINE, ("run_data_parallel_controller_process",)),
    ),
    row(
        "pool.process platforms.controller",
        "the default target of scheduler processes, for callers that give none",
        Names(CONTROLLER, ("run_scheduler_process", "DataParallelController")),
    ),
    # -- the controller class -------------------------------------------------------------------
    row(
        "pool.controller pool.outbox",
        "sockets, processes and parts that the pool controller uses",
        Attributes(
            CONTROLLER,
            CLASS,
            (
                "recv_from_tokenizer",
                "workers",
                "scheduler_procs",
                "server_args",
                "soft_watchdog",
                "env_lock",
                "max_req_input_len",
                "_request_dispatcher",
                "send_control_message",
                "round_robin_scheduler",
                "dispatching_with_trace",
            ),
        ),
    ),
    row(
        "pool.controller",
        "schedulers are up, and the dispatcher is made, when the constructor returns",
        Order(
            CONTROLLER,
            f"{CLASS}.__init__",
            ("self.launch_dp_schedulers(server_args, port_args)", "self.init_dispatcher()"),
        ),
    ),
    row(
        "pool.controller",
        "overridden: handlers of requests and aborts",
        Signature(CONTROLLER, f"{CLASS}.init_dispatcher", (), exact=True),
    ),
    row(
        "pool.controller",
        "the dispatcher's table, changed in place",
        Order("sglang.utils", "TypeBasedDispatcher.__init__", ("self._mapping",)),
    ),
    row(
        "pool.controller",
        "overridden: the rendezvous port of an instance is set before its launch",
        Signature(
            CONTROLLER,
            f"{CLASS}.launch_tensor_parallel_group_thread",
            ("server_args", "port_args", "base_gpu_id", "dp_rank", "ready_event"),
            exact=True,
        ),
    ),
    row(
        "pool.controller",
        "that port is what an instance's ranks meet at",
        Order(
            CONTROLLER,
            f"{CLASS}.launch_dp_schedulers",
            (
                "target=self.launch_tensor_parallel_group_thread",
                "args=(server_args, tmp_port_args, base_gpu_id, dp_rank, ready_event)",
            ),
        ),
    ),
    row(
        "pool.controller platforms.hooks",
        "overridden, and hooked on machines without an accelerator",
        Signature(CONTROLLER, f"{CLASS}.event_loop", (), exact=True),
    ),
    row(
        "pool.controller",
        "stock's way for warm-up and health checks",
        Signature(CONTROLLER, f"{CLASS}.round_robin_scheduler", ("req",)),
    ),
    row(
        "pool.controller",
        "stock's way for requests that name their instance",
        Signature(CONTROLLER, f"{CLASS}.dispatching_with_trace", ("req",)),
    ),
    row(
        "pool.controller",
        "orders to every instance",
        Signature(CONTROLLER, f"{CLASS}.send_control_message", ("obj",)),
    ),
    row(
        "pool.outbox",
        "time stamps on a request, as stock's dispatch leaves them",
        Order(
            CONTROLLER,
            f"{CLASS}.dispatching_with_trace",
            (
                "DPControllerReqTimeStats.new_from_obj(unwrap_from_pickle(req.time_stats))",
                "time_stats.set_dp_dispatch_time()",
                "req.time_stats = wrap_as_pickle(time_stats)",
            ),
        ),
    ),
    row(
        "pool.outbox",
        "the stamp itself",
        Attributes(STATS, "DPControllerReqTimeStats", ("set_dp_dispatch_time",)),
    ),
    # -- messages -------------------------------------------------------------------------------
    row(
        "pool.messages",
        "adds our orders to what SGLang's sockets decode",
        Order(
            IO,
            "hook_custom_types",
            ("_all_types = tuple(dict.fromkeys(_all_types + new_types))", "_msgpack_decoder ="),
        ),
    ),
    row(
        "pool.messages",
        "orders are tagged msgspec structs with a request id",
        Base(IO, "BaseReq", "msgspec.Struct"),
    ),
    row("pool.messages pool.outbox", "the id of a request", Fields(IO, "BaseReq", ("rid",))),
    row(
        "pool.controller pool.outbox",
        "reading and writing SGLang's sockets",
        Names(IO, ("sock_send", "sock_recv", "wrap_as_pickle", "unwrap_from_pickle")),
    ),
    row("pool.controller", "non-blocking reads", Signature(IO, "sock_recv", ("socket", "flags"))),
    row("pool.outbox pool.controller", "writes", Signature(IO, "sock_send", ("socket", "obj"))),
    row(
        "pool.controller pool.outbox",
        "what is read from a tokenized request",
        Fields(
            IO,
            "TokenizedGenerateReqInput",
            (
                "input_ids",
                "sampling_params",
                "bootstrap_host",
                "bootstrap_room",
                "routed_dp_rank",
                "disagg_prefill_dp_rank",
                "return_logprob",
                "logprob_start_len",
                "top_logprobs_num",
                "token_ids_logprob",
            ),
        ),
    ),
    row(
        "pool.intake",
        "what a request may ask for that a pool cannot give",
        Fields(
            IO,
            "TokenizedGenerateReqInput",
            (
                "return_sampling_mask",
                "session_params",
                "input_embeds",
                "positional_embed_overrides",
                "mm_inputs",
                "lora_id",
                "multi_item_delimiter_indices",
                "token_indices_to_pool",
                "return_routed_experts",
                "routed_experts_start_len",
                "require_reasoning",
            ),
        ),
    ),
    row(
        "pool.intake",
        "the same of its sampling parameters",
        Attributes(
            "sglang.srt.sampling.sampling_params",
            "SamplingParams",
            (
                "beam_width",
                "json_schema",
                "regex",
                "ebnf",
                "ebnf_full_assistant",
                "structural_tag",
            ),
        ),
    ),
    row(
        "pool.intake",
        "a session is continued by its id",
        Fields(IO, "SessionParams", ("id",)),
    ),
    row(
        "pool.controller",
        "a batch is taken apart by iteration",
        Order(IO, "BatchTokenizedGenerateReqInput.__iter__", ("iter(self.batch)",)),
    ),
    row(
        "pool.controller pool.admission",
        "a request's own plan, and how many samples it wants",
        Attributes("sglang.srt.sampling.sampling_params", "SamplingParams", ("custom_params", "n")),
    ),
    row(
        "pool.controller pool.outbox engine.scheduler",
        "aborts name requests by the beginning of their id, or all",
        Fields(IO, "AbortReq", ("abort_all", "finished_reason", "abort_message")),
    ),
    row(
        "pool.controller",
        "the tokenizer answers its client with the reason that we give",
        Order(
            TOKENIZER,
            "TokenizerManager._handle_abort_req",
            (
                "state = self.rid_to_state.get(recv_obj.rid)",
                "finish_reason = recv_obj.finished_reason",
            ),
        ),
    ),
    row(
        "pool.controller",
        "a second answer to the same request is ignored",
        Order(TOKENIZER, "TokenizerManager._handle_abort_req", ("if state is None:",)),
    ),
    row(
        "pool.controller",
        "the address at which the tokenizer listens",
        Fields("sglang.srt.server_args", "PortArgs", ("tokenizer_ipc_name", "nccl_port")),
    ),
    row(
        "pool.controller",
        "SGLang's own probes are told by their id",
        Signature("sglang.srt.managers.utils", "is_health_check_generate_req", ("recv_req",)),
    ),
    row(
        "pool.controller",
        "requests without a decode server",
        Value(UTILS, "FAKE_BOOTSTRAP_HOST", "'2.2.2.2'"),
    ),
    row(
        "pool.controller pool.startup pool.contact transfer.manager",
        "addresses and sockets",
        Names(
            NETWORK,
            (
                "NetworkAddress",
                "get_local_ip_auto",
                "get_zmq_socket",
                "get_zmq_socket_on_host",
                "is_port_available",
            ),
        ),
    ),
    row(
        "pool.contact transfer.manager pool.startup",
        "address forms",
        Attributes(NETWORK, "NetworkAddress", ("to_tcp", "to_url", "is_ipv6")),
    ),
    row(
        "pool.contact",
        "a port of the system's choice",
        Signature(NETWORK, "get_zmq_socket_on_host", ("context", "socket_type"), ("host",)),
    ),
    # -- the plugin -----------------------------------------------------------------------------
    row(
        "plugin",
        "plugins are loaded before the command line is read",
        Order("sglang.launch_server", "", ("load_plugins()", "prepare_server_args(")),
    ),
    row(
        "plugin",
        "our options join the parser",
        Signature("sglang.srt.server_args", "ServerArgs.add_cli_args", ("parser",), exact=True),
    ),
    row(
        "plugin",
        "our options are read from the namespace, which stock copies its own fields from",
        Signature("sglang.srt.server_args", "ServerArgs.from_cli_args", ("args",), exact=True),
    ),
    row(
        "plugin hooks platforms.hooks",
        "how hooks are handed over",
        Signature(REGISTRY, "HookRegistry.register", ("target", "hook", "hook_type"), ("source",)),
    ),
    row(
        "plugin hooks platforms.hooks",
        "kinds of hooks",
        Fields(REGISTRY, "HookType", ("BEFORE", "AFTER", "AROUND", "REPLACE")),
    ),
    row(
        "platforms.hooks",
        "which hooks are in place",
        Fields(REGISTRY, "HookRegistry", ("_patched",)),
    ),
    row(
        "platforms.hooks pool.process",
        "loading plugins again is harmless, and shows whether it was done",
        Order("sglang.srt.plugins", "load_plugins", ("if _plugins_loaded:", "apply_hooks()")),
    ),
    row(
        "hooks",
        "errors of plugins are swallowed, so hooks verify themselves",
        Order("sglang.srt.plugins", "load_plugins", ("except Exception:",)),
    ),
    row(
        "routes",
        "the HTTP application is a module attribute",
        Names("sglang.srt.entrypoints.http_server", ("app",)),
    ),
    row("plugin hooks", "the release", Names("sglang", ("__version__",))),
    row(
        "checks plugin",
        "options that are refused or set by `--cdsp`",
        Options(
            "sglang.srt.arg_groups.fields",
            (
                "disaggregation_mode",
                "disaggregation_transfer_backend",
                "dp_size",
                "speculative_algorithm",
                "pp_size",
                "enable_dp_attention",
                "attn_cp_size",
                "dcp_size",
                "enable_lora",
                "lora_paths",
                "enable_multimodal",
                "enable_hierarchical_cache",
                "enable_pd_role_switch",
                "tokenizer_worker_num",
                "nnodes",
                "enable_mixed_chunk",
                "enable_return_hidden_states",
                "return_hidden_states_mode",
                "enable_return_routed_experts",
                "enable_return_indexer_topk",
                "disable_radix_cache",
                "disable_overlap_schedule",
            ),
        ),
    ),
    row(
        "pool.startup",
        "the bootstrap server's address",
        Names("sglang.srt.runtime_context", ("get_disagg", "get_serving", "get_parallel")),
    ),
    row(
        "hooks transfer.manager",
        "which class moves KV is asked here, with these two values",
        Signature(UTILS, "get_kv_class", ("transfer_backend", "class_type"), exact=True),
    ),
    row(
        "hooks",
        "the prefill side asks through its own import",
        Calls("sglang.srt.disaggregation.prefill", "PrefillBootstrapQueue", "get_kv_class"),
    ),
    row("hooks", "transfer engines", Fields(UTILS, "TransferBackend", ("NIXL", "MOONCAKE"))),
    row("hooks", "the manager's kind", Fields(UTILS, "KVClassType", ("MANAGER",))),
)
