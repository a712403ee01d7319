"""The platform's hooks into SGLang: one table, registered in every process and checked."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from sglang_cdsp.platforms.host_memory import prepare_nixl_manager
from sglang_cdsp.platforms.idle import (
    make_controller_patient,
    pause_idle_scheduler,
    pause_paused_scheduler,
)
from sglang_cdsp.platforms.threads import bind_rank_threads


class PlatformHookError(RuntimeError):
    """A hook of the CPU platform could not be put in place."""


@dataclass(frozen=True)
class PlatformHook:
    """One hook: SGLang's name of the target, our function, and how it attaches."""

    target: str
    function: Callable[..., Any]
    kind: str  # a name in sglang.srt.plugins.hook_registry.HookType
    why: str


def skip_sgl_kernel_threads(**kwargs: Any) -> None:
    """Take the place of the thread set-up that calls into ``sgl_kernel``."""


PLATFORM_HOOKS = (
    PlatformHook(
        "sglang.srt.disaggregation.nixl.conn.NixlKVManager.__init__",
        prepare_nixl_manager,
        "BEFORE",
        "KV lies in host memory, on few cores",
    ),
    PlatformHook(
        "sglang.srt.managers.scheduler.Scheduler.on_idle",
        pause_idle_scheduler,
        "AFTER",
        "an idle scheduler must not use a core",
    ),
    PlatformHook(
        "sglang.srt.managers.scheduler.Scheduler._record_scheduler_state_for_paused_engine",
        pause_paused_scheduler,
        "AFTER",
        "a paused scheduler must not use a core",
    ),
    PlatformHook(
        "sglang.srt.managers.data_parallel_controller.DataParallelController.event_loop",
        make_controller_patient,
        "BEFORE",
        "an idle controller must not use a core",
    ),
    PlatformHook(
        "sglang.srt.utils.numa_utils.init_threads_binding",
        bind_rank_threads,
        "REPLACE",
        "several ranks share a NUMA node",
    ),
    PlatformHook(
        "sglang.srt.distributed.bootstrap._init_cpu_threads_env",
        skip_sgl_kernel_threads,
        "REPLACE",
        "sgl_kernel is not there to bind threads",
    ),
)


@functools.cache
def register_hooks() -> None:
    """Hand ``PLATFORM_HOOKS`` to SGLang's hook registry, which applies them in ``load_plugins``."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookSource, HookType

    source = HookSource(plugin_name="cdsp_cpu", dist_name="sglang-cdsp")
    for hook in PLATFORM_HOOKS:
        HookRegistry.register(hook.target, hook.function, HookType[hook.kind], source=source)


def check_hooks_live() -> None:
    """Check, after ``load_plugins``, that every hook is in place; SGLang only logs a failure.

    Raises:
        PlatformHookError: names the hooks that are not, and the SGLang version found.
    """
    from sglang.srt import plugins
    from sglang.srt.plugins.hook_registry import HookRegistry

    if not plugins._plugins_loaded:
        return
    missing = [hook for hook in PLATFORM_HOOKS if hook.target not in HookRegistry._patched]
    if missing:
        names = "; ".join(f"{hook.target} ({hook.why})" for hook in missing)
        raise PlatformHookError(
            f"the CPU platform of sglang-cdsp could not hook {names} in SGLang "
            f"{version('sglang')}; install the SGLang version in requirements/cpu.txt, or choose "
            "another platform with SGLANG_PLATFORM"
        )
