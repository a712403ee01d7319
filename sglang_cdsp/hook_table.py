"""Hooks into SGLang as data: a table's rows are put in place, and then checked one by one.

SGLang logs and swallows the errors of plugins and hooks; serving half-hooked would give stock
behaviour under ``--cdsp`` without a word. So each process checks that its hooks are live and
ends with one line when one is not.

Rows name code by text, so a table imports neither SGLang nor the modules that it names: the CPU
platform registers its table while ``import sglang`` is still running.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

Table = Sequence["Hook"]


class Kind(Enum):
    """How ours attaches to SGLang's; all but ``ASSIGN`` are kinds of SGLang's hook registry."""

    BEFORE = auto()
    AFTER = auto()
    AROUND = auto()
    REPLACE = auto()
    # A plain assignment. The registry replaces a function by a wrapper that bears the stock
    # function's name, and a spawned process would unpickle the stock function by that name.
    ASSIGN = auto()


@dataclass(frozen=True)
class Hook:
    """One place where we enter SGLang.

    Attributes:
        target: dotted path in SGLang.
        ours: ``"module:attribute"`` of what we put there.
        kind: how it attaches.
        why: what it is for.
        also: other dotted paths at which SGLang holds the target; ours must be there, too.
        probe: ``"module:attribute"`` of a function that is given what stands at the target and
            tells whether it behaves as ours; "" where that need not be tried.
    """

    target: str
    ours: str
    kind: Kind
    why: str
    also: tuple[str, ...] = ()
    probe: str = ""


class HookNotLive(SystemExit):
    """A hook is not in force: the server must not serve. (SGLang does not swallow SystemExit.)"""


def resolve(path: str) -> Any:
    """Import a path, ``"package.module.attribute"`` or ``"package.module:attribute"``.

    Raises:
        ImportError: no such module; names the path.
        AttributeError: the module has no such attribute.
    """
    try:
        return pkgutil.resolve_name(path)
    except ImportError as error:
        raise ImportError(f"{path}: {error}") from error


def apply(table: Table, *, plugin: str = "cdsp", at_once: bool = False) -> None:
    """Put hooks in place; those of the registry take effect when SGLang applies it.

    Applying a table again changes nothing.

    Args:
        table: the hooks.
        plugin: whose they are, as SGLang's log shall name it.
        at_once: have the registry applied now, where SGLang has loaded its plugins already.
    """
    from sglang.srt.plugins.hook_registry import HookRegistry, HookSource, HookType

    source = HookSource(plugin_name=plugin, dist_name="sglang-cdsp")
    for hook in table:
        ours = resolve(hook.ours)
        if hook.kind is Kind.ASSIGN:
            owner, _, name = hook.target.rpartition(".")
            setattr(resolve(owner), name, ours)
        elif not any(there is ours for _, there, _ in HookRegistry._hooks.get(hook.target, ())):
            HookRegistry.register(hook.target, ours, HookType[hook.kind.name], source=source)
    if at_once:
        HookRegistry.apply_hooks()


def fault(hook: Hook) -> str:
    """Why a hook is not in force in this process; "" while it is."""
    try:
        ours = resolve(hook.ours)
        for path in (hook.target, *hook.also):
            found = resolve(path)
            if not _is_ours(found, ours, hook.kind):
                return f"SGLang's own is still in place at {path}"
            if hook.probe and not resolve(hook.probe)(found):
                return f"what stands at {path} does not behave as ours"
    except Exception as error:
        return " ".join(str(error).split()) or repr(error)
    return ""


def live(table: Table) -> list[str]:
    """Targets of the hooks that are in force in this process."""
    return [hook.target for hook in table if not fault(hook)]


def verify(table: Table, remedy: str) -> None:
    """Check that hooks are in force in this process.

    Args:
        table: the hooks.
        remedy: what to do where one is not, as a sentence.

    Raises:
        HookNotLive: names all that are not, why, and the SGLang release found.
    """
    from sglang import __version__

    faults = [
        f"the hook on {hook.target} ({hook.why}) is not live: {reason}"
        for hook in table
        if (reason := fault(hook))
    ]
    if faults:
        raise HookNotLive(f"sglang-cdsp: {'; '.join(faults)} (sglang {__version__}). {remedy}")


def _is_ours(found: Any, ours: Any, kind: Kind) -> bool:
    """Whether what stands at a target is ours or, put there by the registry, calls ours."""
    if found is ours:
        return True
    wrapped = kind is not Kind.ASSIGN and not isinstance(ours, type)
    return wrapped and any(held is ours for held in _held_by_wrappers(found))


def _held_by_wrappers(found: Any) -> Iterator[Any]:
    """What a chain of wrappers holds, from the outermost to the stock function.

    A wrapper of the registry bears the stock function's name, but it is a closure over the hook
    that it calls.
    """
    while found is not None:
        for cell in getattr(found, "__closure__", None) or ():
            yield cell.cell_contents
        found = getattr(found, "__wrapped__", None)
