"""What the pool relies on in messages: requests, answers, sockets and addresses."""

from __future__ import annotations

from tests.contract.needs import Attributes, Base, Fields, Names, Order, Signature, Value
from tests.contract.row import row

IO = "sglang.srt.managers.io_struct"
NETWORK = "sglang.srt.utils.network"
TOKENIZER = "sglang.srt.managers.tokenizer_manager"
UTILS = "sglang.srt.disaggregation.utils"

ROWS = (
    row(
        "protocol.messages",
        "adds our orders to what SGLang's sockets decode",
        Order(
            IO,
            "hook_custom_types",
            ("_all_types = tuple(dict.fromkeys(_all_types + new_types))", "_msgpack_decoder ="),
        ),
    ),
    row(
        "protocol.messages protocol.task_orders protocol.seat_orders protocol.moving "
        "protocol.copying",
        "orders are tagged msgspec structs with a request id",
        Base(IO, "BaseReq", "msgspec.Struct"),
    ),
    row(
        "protocol.messages controller.dispatcher engine.task_queue",
        "the id of a request",
        Fields(IO, "BaseReq", ("rid",)),
    ),
    row(
        "controller.controller controller.dispatcher",
        "reading and writing SGLang's sockets",
        Names(IO, ("sock_send", "sock_recv", "wrap_as_pickle", "unwrap_from_pickle")),
    ),
    row(
        "controller.controller",
        "non-blocking reads",
        Signature(IO, "sock_recv", ("socket", "flags")),
    ),
    row(
        "controller.dispatcher controller.controller",
        "writes",
        Signature(IO, "sock_send", ("socket", "obj")),
    ),
    row(
        "controller.controller controller.dispatcher controller.intake",
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
        "controller.request_checks",
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
        "controller.request_checks",
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
        "controller.request_checks",
        "a session is continued by its id",
        Fields(IO, "SessionParams", ("id",)),
    ),
    row(
        "controller.controller",
        "a batch is taken apart by iteration",
        Order(IO, "BatchTokenizedGenerateReqInput.__iter__", ("iter(self.batch)",)),
    ),
    row(
        "controller.controller controller.admission",
        "a request's own plan, and how many samples it wants",
        Attributes("sglang.srt.sampling.sampling_params", "SamplingParams", ("custom_params", "n")),
    ),
    row(
        "controller.controller controller.dispatcher controller.intake engine.scheduler",
        "aborts name requests by the beginning of their id, or all",
        Fields(IO, "AbortReq", ("abort_all", "finished_reason", "abort_message")),
    ),
    row(
        "controller.controller",
        "stock's dispatcher has entries for these; all others reach its fallback",
        Names(IO, ("ProfileReq", "BlockReqInput")),
    ),
    row(
        "controller.controller",
        "a server that ends in order tells its schedulers so",
        Names(IO, ("ShutdownReq",)),
    ),
    row(
        "controller.controller",
        "whatever the tokenizer hears answers a health check; this is meant for it",
        Names(IO, ("HealthCheckOutput",)),
    ),
    row(
        "controller.controller",
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
        "controller.dispatcher",
        "streams tell an abort by the status's type from one that a client asked for",
        Order(
            "sglang.srt.entrypoints.openai.serving_completions",
            "OpenAIServingCompletion._generate_completion_stream",
            ("isinstance(finish_reason.get('status_code'), HTTPStatus)",),
        ),
    ),
    row(
        "controller.controller",
        "a second answer to the same request is ignored",
        Order(TOKENIZER, "TokenizerManager._handle_abort_req", ("if state is None:",)),
    ),
    row(
        "controller.controller",
        "the address at which the tokenizer listens",
        Fields("sglang.srt.server_args", "PortArgs", ("tokenizer_ipc_name", "nccl_port")),
    ),
    row(
        "controller.controller",
        "SGLang's own probes are told by their id",
        Signature("sglang.srt.managers.utils", "is_health_check_generate_req", ("recv_req",)),
    ),
    row(
        "controller.intake controller.prefixes.pool",
        "requests without a decode server",
        Value(UTILS, "FAKE_BOOTSTRAP_HOST", "'2.2.2.2'"),
    ),
    row(
        "controller.controller controller.startup controller.decode.endpoint transfer.manager",
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
        "controller.decode.endpoint transfer.manager controller.startup",
        "address forms",
        Attributes(NETWORK, "NetworkAddress", ("to_tcp", "to_url", "is_ipv6")),
    ),
    row(
        "controller.decode.endpoint",
        "a port of the system's choice",
        Signature(NETWORK, "get_zmq_socket_on_host", ("context", "socket_type"), ("host",)),
    ),
)
