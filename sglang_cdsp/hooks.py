"""Every place where CDSP enters SGLang, in one table, applied and then verified.

SGLang logs and swallows the errors of plugins and hooks; serving half-hooked would give stock
behaviour under ``--cdsp`` without a word. So each process checks that its hooks are live and
ends the server with one line when one is not.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Hook:
    """One hook.

    Attributes:
        target: dotted path in SGLang.
        why: what it is for.
        apply: installs it in this process.
        live: tells whether it is in force in this process.
    """

    target: str
    why: str
    apply: Callable[[], None]
    live: Callable[[], bool]


class HookNotLive(SystemExit):
    """A hook is not in force: the server must not serve. (SGLang does not swallow SystemExit.)"""


def resolve(path: str) -> Any:
    """Import a dotted path, following attributes after the module."""
    parts = path.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for name in parts[cut:]:
            found = getattr(found, name)
        return found
    raise ImportError(f"{path}: no such module")


def _apply_scheduler() -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    from sglang_cdsp.engine.scheduler import PoolScheduler

    HookRegistry.register(SCHEDULER, PoolScheduler, HookType.REPLACE)


def _scheduler_live() -> bool:
    found = resolve(SCHEDULER)
    return bool(found.__module__ == "sglang_cdsp.engine.scheduler")


def _managers() -> dict[Any, Any]:
    """Our manager by SGLang's name of the transfer engine."""
    from sglang.srt.disaggregation.utils import TransferBackend

    from sglang_cdsp.transfer.registry import TRANSFER_ENGINES

    return {TransferBackend(engine.name): engine.manager_class() for engine in TRANSFER_ENGINES}


def _pool_manager(original: Callable[..., Any], backend: Any, class_type: Any) -> Any:
    """AROUND ``get_kv_class``: a prefill instance's manager is ours."""
    from sglang.srt.disaggregation.utils import KVClassType

    ours = _managers().get(backend) if class_type == KVClassType.MANAGER else None
    return ours or original(backend, class_type)


def _apply_kv_class() -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register(KV_CLASS, _pool_manager, HookType.AROUND)


def _kv_class_live() -> bool:
    from sglang.srt.disaggregation.utils import KVClassType

    in_use = resolve("sglang.srt.disaggregation.prefill.get_kv_class"), resolve(KV_CLASS)
    return all(
        get_kv_class(backend, KVClassType.MANAGER) is ours
        for backend, ours in _managers().items()
        for get_kv_class in in_use
    )


def _apply_controller() -> None:
    import sglang.srt.entrypoints.engine as engine

    from sglang_cdsp.controller.process import run_pool_controller_process

    # A plain assignment: a HookRegistry wrapper keeps the stock function's name, and the spawned
    # process would unpickle the stock function by that name.
    engine.run_data_parallel_controller_process = run_pool_controller_process


def _controller_live() -> bool:
    found = resolve(CONTROLLER)
    return bool(found.__module__ == "sglang_cdsp.controller.process")


SCHEDULER = "sglang.srt.managers.scheduler.Scheduler"
KV_CLASS = "sglang.srt.disaggregation.utils.get_kv_class"
CONTROLLER = "sglang.srt.entrypoints.engine.run_data_parallel_controller_process"

# By the process that needs them: the launching process, and every scheduler.
LAUNCHER_HOOKS = (
    Hook(CONTROLLER, "the pool controller plans requests", _apply_controller, _controller_live),
)
SCHEDULER_HOOKS = (
    Hook(SCHEDULER, "a scheduler runs chunk tasks", _apply_scheduler, _scheduler_live),
    Hook(KV_CLASS, "every holder sends its KV", _apply_kv_class, _kv_class_live),
)


def apply(table: tuple[Hook, ...]) -> None:
    """Install hooks; those of the registry take effect when SGLang applies it."""
    for hook in table:
        hook.apply()


def verify(table: tuple[Hook, ...]) -> None:
    """Check that hooks are in force.

    Raises:
        HookNotLive: names the first that is not, and the SGLang release found.
    """
    from sglang import __version__

    for hook in table:
        try:
            reason = "" if hook.live() else "SGLang's own is still in place"
        except Exception as error:
            reason = str(error)
        if reason:
            raise HookNotLive(
                f"sglang-cdsp: the hook on {hook.target} ({hook.why}) is not live in sglang "
                f"{__version__}: {reason}. Install a tested release or start without --cdsp."
            )


def verify_scheduler(scheduler: object) -> None:
    """The scheduler process's check, once its scheduler is built."""
    verify(SCHEDULER_HOOKS)


def live_hooks() -> list[str]:
    """Targets in force in this process, for ``/server_info``."""
    return [hook.target for hook in SCHEDULER_HOOKS if hook.live()]
