"""The CPU platform's hooks into SGLang, registered in every process that it runs in."""

from sglang_cdsp import hook_table
from sglang_cdsp.hook_table import Hook, Kind

PLATFORM_HOOKS = (
    Hook(
        "sglang.srt.disaggregation.nixl.conn.NixlKVManager.__init__",
        "sglang_cdsp.platforms.host_memory:prepare_nixl_manager",
        Kind.BEFORE,
        "KV lies in host memory, on few cores",
    ),
    Hook(
        "sglang.srt.managers.scheduler.Scheduler.on_idle",
        "sglang_cdsp.platforms.idle:pause_idle_scheduler",
        Kind.AFTER,
        "an idle scheduler must not use a core",
    ),
    Hook(
        "sglang.srt.managers.scheduler.Scheduler._record_scheduler_state_for_paused_engine",
        "sglang_cdsp.platforms.idle:pause_paused_scheduler",
        Kind.AFTER,
        "a paused scheduler must not use a core",
    ),
    Hook(
        "sglang.srt.managers.data_parallel_controller.DataParallelController.event_loop",
        "sglang_cdsp.platforms.idle:make_controller_patient",
        Kind.BEFORE,
        "an idle controller must not use a core",
    ),
    Hook(
        "sglang.srt.utils.numa_utils.init_threads_binding",
        "sglang_cdsp.platforms.threads:bind_rank_threads",
        Kind.REPLACE,
        "several ranks share a NUMA node",
    ),
    Hook(
        "sglang.srt.distributed.bootstrap._init_cpu_threads_env",
        "sglang_cdsp.platforms.threads:skip_sgl_kernel_threads",
        Kind.REPLACE,
        "sgl_kernel is not there to bind threads",
    ),
    Hook(
        "sglang.srt.layers.attention.torch_native_backend"
        ".TorchNativeAttnBackend._run_sdpa_forward_extend",
        "sglang_cdsp.platforms.torch_attention:extend",
        Kind.AROUND,
        "a chunk must not compute its prefix's queries again",
    ),
    Hook(
        "sglang.srt.layers.attention.torch_native_backend"
        ".TorchNativeAttnBackend._run_sdpa_forward_decode",
        "sglang_cdsp.platforms.torch_attention:decode",
        Kind.AROUND,
        "decode must not copy the keys and values that it reads",
    ),
    Hook(
        "sglang.srt.layers.attention.torch_native_backend.TorchNativeAttnBackend.forward_extend",
        "sglang_cdsp.platforms.sinks:extend",
        Kind.AROUND,
        "sinks take their part of the softmax",
    ),
    Hook(
        "sglang.srt.layers.attention.torch_native_backend.TorchNativeAttnBackend.forward_decode",
        "sglang_cdsp.platforms.sinks:decode",
        Kind.AROUND,
        "sinks take their part of the softmax",
    ),
    Hook(
        "sglang.srt.layers.attention.torch_native_backend.TorchNativeAttnBackend.__init__",
        "sglang_cdsp.platforms.absorbed:absorb_latents",
        Kind.BEFORE,
        "latent rows are read as they are",
    ),
    Hook(
        "sglang.srt.managers.scheduler_components.profiler_manager"
        ".SchedulerProfilerManager._profile",
        "sglang_cdsp.platforms.profiling:refuse_device_activities",
        Kind.AROUND,
        "a profile of what a CPU lacks would end the server",
    ),
)

REMEDY = (
    "Install the SGLang version in requirements/cpu.txt, or choose another platform than the CPU "
    "platform of sglang-cdsp with SGLANG_PLATFORM."
)


def register_hooks() -> None:
    """Hand ``PLATFORM_HOOKS`` to SGLang's hook registry, which applies them in ``load_plugins``."""
    hook_table.apply(PLATFORM_HOOKS, plugin="cdsp_cpu")


def check_hooks_live() -> None:
    """Check, after ``load_plugins``, that every hook is in place; SGLang only logs a failure.

    Raises:
        HookNotLive: names the hooks that are not, and the SGLang version found.
    """
    from sglang.srt import plugins

    if plugins._plugins_loaded:
        hook_table.verify(PLATFORM_HOOKS, REMEDY)
