"""Every place where CDSP enters SGLang, by the process that it concerns.

The CPU platform has a table of its own, ``platforms/hooks.py``: it works without ``--cdsp``.
"""

from __future__ import annotations

from sglang_cdsp import hook_table
from sglang_cdsp.hook_table import Hook, Kind

SCHEDULER = "sglang.srt.managers.scheduler.Scheduler"
KV_CLASS = "sglang.srt.disaggregation.utils.get_kv_class"
ENGINE_MODULE = "sglang.srt.entrypoints.engine"
ENGINE = f"{ENGINE_MODULE}.Engine"
CONTROLLER_TARGET = f"{ENGINE_MODULE}.run_data_parallel_controller_process"
LAUNCH = f"{ENGINE}._launch_scheduler_processes"
CONTROLLER = "sglang.srt.managers.data_parallel_controller.DataParallelController"
CONTROL_MIXIN = "sglang.srt.managers.tokenizer_control_mixin.TokenizerControlMixin"
SERVER_ARGS = "sglang.srt.server_args.ServerArgs"
LOADS = "sglang.srt.managers.tokenizer_manager.create_load_snapshot_reader"
TOKENIZE = "sglang.srt.managers.tokenizer_manager.TokenizerManager._tokenize_one_request"
ACCELERATORS = "sglang.srt.entrypoints.v1_loads._num_accelerators_per_dp_rank"
PUBLISHER = "sglang.srt.runtime_context.describe_kv_events_publisher"
BUILD_CACHE = "sglang.srt.mem_cache.kv_cache_builder.build_kv_cache"
COLLECTOR = "sglang.srt.observability.metrics_collector.SchedulerMetricsCollector"

# Any process without ``--cdsp``: the one that reads the command line is among them.
OPTION_HOOKS = (
    Hook(
        f"{SERVER_ARGS}.add_cli_args",
        "sglang_cdsp.plugin:offer_options",
        Kind.AFTER,
        "the command line takes --cdsp",
    ),
    Hook(
        f"{SERVER_ARGS}.from_cli_args",
        "sglang_cdsp.plugin:read_options",
        Kind.AROUND,
        "--cdsp is read and takes effect",
    ),
)

# The same where ``sgl.Engine`` is at hand: a program that makes one.
ENGINE_HOOKS = (
    Hook(
        f"{ENGINE}.server_args_class",
        "sglang_cdsp.offline:ENGINE_ARGS",
        Kind.ASSIGN,
        "an engine takes cdsp=True",
    ),
    Hook(
        f"{ENGINE}.shutdown",
        "sglang_cdsp.offline:shut_down",
        Kind.AROUND,
        "a pool's controller may end with its engine",
    ),
)

# The process that launches a server, and answers HTTP, with ``--cdsp``.
LAUNCHER_HOOKS = (
    Hook(
        CONTROLLER_TARGET,
        "sglang_cdsp.controller.process:run_pool_controller_process",
        Kind.ASSIGN,
        "the pool controller plans requests",
    ),
    Hook(
        LAUNCH,
        "sglang_cdsp.launch.sigquit:launch_with_sigquit_blocked",
        Kind.ASSIGN,
        "the controller learns which scheduler sends it SIGQUIT",
    ),
    Hook(
        LOADS,
        "sglang_cdsp.loads:create_pool_load_reader",
        Kind.ASSIGN,
        "/v1/loads shows one replica",
    ),
    Hook(
        ACCELERATORS,
        "sglang_cdsp.loads:pool_accelerators",
        Kind.ASSIGN,
        "/v1/loads shows the accelerators of one replica",
    ),
    Hook(
        f"{CONTROL_MIXIN}.flush_cache",
        "sglang_cdsp.control.fan_out:flush_cache",
        Kind.ASSIGN,
        "a flush is told as what all instances did",
    ),
    Hook(
        f"{CONTROL_MIXIN}._execute_profile",
        "sglang_cdsp.control.fan_out:execute_profile",
        Kind.ASSIGN,
        "a profile is told as what all instances did",
    ),
    Hook(
        TOKENIZE,
        "sglang_cdsp.control.text_only:tokenize_one_request",
        Kind.ASSIGN,
        "images are refused, not left out",
    ),
    Hook(
        PUBLISHER,
        "sglang_cdsp.control.publisher:describe_pool_publisher",
        Kind.AROUND,
        "/server_info tells of one publisher of KV events",
    ),
)

# The pool controller's process.
CONTROLLER_HOOKS = (
    Hook(
        CONTROLLER,
        "sglang_cdsp.controller.controller:PoolController",
        Kind.ASSIGN,
        "SGLang's controller process runs the pool controller",
    ),
)

# Every scheduler.
SCHEDULER_HOOKS = (
    Hook(
        SCHEDULER,
        "sglang_cdsp.engine.scheduler:PoolScheduler",
        Kind.REPLACE,
        "a scheduler runs chunk tasks",
    ),
    Hook(
        KV_CLASS,
        "sglang_cdsp.transfer.kv_class:pool_kv_class",
        Kind.AROUND,
        "every holder sends its KV",
        also=("sglang.srt.disaggregation.prefill.get_kv_class",),
        probe="sglang_cdsp.transfer.kv_class:gives_pool_managers",
    ),
    Hook(
        f"{COLLECTOR}.__init__",
        "sglang_cdsp.engine.metric_labels:collect_as_one_replica",
        Kind.AROUND,
        "metrics have the labels of one replica",
    ),
    Hook(
        BUILD_CACHE,
        "sglang_cdsp.engine.cache_events:build_with_events",
        Kind.AROUND,
        "the controller knows what each instance has cached, where prefixes are reused",
    ),
)

REMEDY = "Install a tested release or start without --cdsp."


def verify(table: hook_table.Table) -> None:
    """Check that hooks of this module are in force in this process.

    Raises:
        HookNotLive: names those that are not.
    """
    hook_table.verify(table, REMEDY)
