"""What the plugin relies on: flags, hooks, and the options that it refuses."""

from __future__ import annotations

from sglang_cdsp.launch.stock_options import OPTIONS, Effect
from tests.contract.changed import Changed, Not
from tests.contract.needs import Calls, Fields, Names, Options, Order, Signature
from tests.contract.row import row

REGISTRY = "sglang.srt.plugins.hook_registry"
UTILS = "sglang.srt.disaggregation.utils"

ROWS = (
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
        "serve.flags",
        "a server's command line is read as the server will read it, without resolving anything",
        Signature("sglang.srt.server_args", "ServerArgs.add_cli_args", ("parser",), exact=True),
    ),
    row(
        "serve.flags",
        "nothing is imported or asked of a device before the arguments are resolved",
        Signature("sglang.srt.server_args", "ServerArgs.resolve_once", (), exact=True),
    ),
    row(
        "plugin hooks",
        "an engine loads plugins, then makes its arguments with this attribute",
        Order(
            "sglang.srt.entrypoints.engine",
            "Engine.__init__",
            ("load_plugins()", "self.server_args_class(**kwargs)"),
        ),
    ),
    row(
        "hooks offline",
        "hooked: ends what the engine has started",
        Signature("sglang.srt.entrypoints.engine", "Engine.shutdown", (), exact=True),
    ),
    row(
        "hook_table",
        "how hooks are handed over",
        Signature(REGISTRY, "HookRegistry.register", ("target", "hook", "hook_type"), ("source",)),
    ),
    row(
        "hook_table",
        "how those that were handed over are put in place, where plugins are loaded already",
        Order(
            REGISTRY,
            "HookRegistry.apply_hooks",
            ("if target in cls._patched:", "cls._apply_target(target, hooks)"),
        ),
    ),
    row(
        "hook_table",
        "modules that have imported a function call the hooked one, too",
        Calls(REGISTRY, "HookRegistry._apply_target", "_propagate_patch"),
    ),
    row(
        "hook_table",
        "kinds of hooks",
        Fields(REGISTRY, "HookType", ("BEFORE", "AFTER", "AROUND", "REPLACE")),
    ),
    row(
        "hook_table",
        "which hooks were handed over already",
        Fields(REGISTRY, "HookRegistry", ("_hooks",)),
    ),
    row(
        "hook_table",
        "a wrapper holds the hook that it calls, and leads to what it wraps",
        Order(REGISTRY, "_wrap_fn", ("wrapper.__wrapped__ = original_fn", "return wrapper")),
    ),
    row(
        "platforms.hooks controller.process",
        "loading plugins again is harmless, and shows whether it was done",
        Order("sglang.srt.plugins", "load_plugins", ("if _plugins_loaded:", "apply_hooks()")),
    ),
    row(
        "hook_table hooks",
        "errors of plugins are swallowed, so hooks verify themselves",
        Order("sglang.srt.plugins", "load_plugins", ("except Exception:",)),
    ),
    row(
        "routes",
        "the HTTP application is a module attribute",
        Names("sglang.srt.entrypoints.http_server", ("app",)),
    ),
    row(
        "routes",
        "the level of authorisation of a route",
        Names("sglang.srt.utils.auth", ("AuthLevel", "auth_level", "add_api_key_middleware")),
    ),
    row(
        "routes",
        "the middleware finds that level on the endpoint of a route of the application itself",
        Order(
            "sglang.srt.utils.auth",
            "_get_auth_level_from_app_and_scope",
            ('getattr(route, "endpoint", None)', 'getattr(endpoint, "_auth_level", None)'),
        ),
    ),
    row(
        "launch.defaults",
        "what an open page asks is left out of the access log",
        Options("sglang.srt.arg_groups.fields", ("uvicorn_access_log_exclude_prefixes",)),
    ),
    row("launch.command_line hook_table", "the release", Names("sglang", ("__version__",))),
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
                "allow_auto_truncate",
                "enable_eplb",
                "expert_distribution_recorder_mode",
                "expert_balancedness_report_mode",
                "enable_return_hidden_states",
                "return_hidden_states_mode",
                "enable_return_routed_experts",
                "enable_return_indexer_topk",
                "disaggregation_enable_kv_checksum",
                "disable_radix_cache",
                "disable_overlap_schedule",
            ),
        ),
    ),
    row(
        "checks",
        "further options that are checked",
        Changed(
            Not(Options("sglang.srt.arg_groups.fields", ("enable_kv_cache_sharding",))),
            Options(
                "sglang.srt.arg_groups.fields",
                (
                    "attn_dp_size",
                    "disaggregation_decode_allocation_policy",
                    "enable_kv_cache_sharding",
                    "enable_return_aux_hidden_states",
                    "enable_watermark",
                ),
            ),
            "refused unless they have their defaults, where they exist (`checks`)",
        ),
    ),
    row(
        "launch.command_line launch.options launch.ports launch.model",
        "what is checked before the start",
        Options(
            "sglang.srt.arg_groups.fields",
            (
                "dp_size",
                "page_size",
                "host",
                "port",
                "disaggregation_bootstrap_port",
                "grpc_port",
                "disaggregation_transfer_backend",
                "model_path",
                "json_model_override_args",
                "revision",
            ),
        ),
    ),
    row(
        "controller.controller",
        "options by which the same forward takes another time: kept latency models tell them apart",
        Options(
            "sglang.srt.arg_groups.fields",
            ("attention_backend", "prefill_attention_backend", "quantization"),
        ),
    ),
    row(
        "launch.stock_options",
        "options about order, time-outs and limits that are refused",
        Options(
            "sglang.srt.arg_groups.fields",
            tuple(
                option.field
                for option in OPTIONS
                if option.effect is Effect.REFUSED and option.name.startswith("--")
            ),
        ),
    ),
    row(
        "controller.startup",
        "the bootstrap server's address",
        Names("sglang.srt.runtime_context", ("get_disagg", "get_serving", "get_parallel")),
    ),
    row(
        "hooks transfer.kv_class transfer.manager",
        "which class moves KV is asked here, with these two values",
        Signature(UTILS, "get_kv_class", ("transfer_backend", "class_type"), exact=True),
    ),
    row(
        "hooks",
        "the prefill side asks through its own import",
        Calls("sglang.srt.disaggregation.prefill", "PrefillBootstrapQueue", "get_kv_class"),
    ),
    row(
        "transfer.kv_class",
        "transfer engines",
        Fields(UTILS, "TransferBackend", ("NIXL", "MOONCAKE")),
    ),
    row("transfer.kv_class", "the manager's kind", Fields(UTILS, "KVClassType", ("MANAGER",))),
)
