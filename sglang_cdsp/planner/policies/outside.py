"""Policies from outside of the package: a class in a module, or in a file, named by the user.

A policy is named `MODULE:CLASS`, the module being importable, or `FILE.py:CLASS`. The class is a
`Policy` that is made from the `PolicyOptions` alone. Importing it runs its module, so this happens
only for names of this form, in the processes that ask for such a policy.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, TypeGuard

from sglang_cdsp.planner.errors import OptionError
from sglang_cdsp.planner.policies.base import Policy

FORMS = ("MODULE:CLASS", "FILE.py:CLASS")
"""How a policy from outside is named, for help texts."""

SUFFIX = ".py"


def is_outside(name: str) -> bool:
    """Whether a policy's name has the form of one from outside."""
    place, _, attribute = name.rpartition(":")
    return attribute.isidentifier() and (
        place.endswith(SUFFIX) or all(part.isidentifier() for part in place.split("."))
    )


def load(name: str) -> type[Policy]:
    """The class that a name of this form stands for.

    Raises:
        OptionError: there is no such class, its module cannot be imported, or the class is no
            policy that could be made; one line that names the remedy.
    """
    place, _, attribute = name.rpartition(":")
    module = _module(place, name)
    found = getattr(module, attribute, None)
    if not _is_policy(found):
        others = [key for key, value in vars(module).items() if _is_own(value, module)]
        instead = f"it has {', '.join(others)}" if others else f"define one, a {_BASE}"
        what = "has no policy of that name" if found is None else f"is no class of {_BASE}"
        raise OptionError(f"policy {name!r}: {attribute} {what}; {instead}")
    lacks = sorted(found.__abstractmethods__)
    if lacks:
        raise OptionError(f"policy {name!r}: {attribute} has no {', '.join(lacks)}; add them")
    try:
        inspect.signature(found).bind(None)
    except TypeError as error:
        raise OptionError(
            f"policy {name!r}: it is made from the PolicyOptions alone, and {attribute} wants "
            f"otherwise ({error}); give its other arguments defaults"
        ) from None
    return found


_BASE = "sglang_cdsp.planner.Policy"


def _is_policy(found: Any) -> TypeGuard[type[Policy]]:
    return inspect.isclass(found) and issubclass(found, Policy)


def _is_own(found: Any, module: ModuleType) -> bool:
    return (
        _is_policy(found)
        and found.__module__ == module.__name__
        and not inspect.isabstract(found)
        and not found.__name__.startswith("_")
    )


def _module(place: str, name: str) -> ModuleType:
    """The module, imported once a process.

    Raises:
        OptionError: it cannot be imported; says why.
    """
    try:
        return _of_file(Path(place), name) if place.endswith(SUFFIX) else _of_path(place, name)
    except OptionError:
        raise
    except Exception as error:  # the module is anybody's code
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise OptionError(f"policy {name!r}: {place} cannot be imported: {said}") from error


def _of_path(place: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{place}.".startswith(f"{error.name}."):
            raise  # it is there, and imports what is not
        raise OptionError(
            f"policy {name!r}: there is no module {error.name}; add its folder to PYTHONPATH, or "
            f"name the file, as in {FORMS[1]}"
        ) from None


def _of_file(path: Path, name: str) -> ModuleType:
    if not path.is_file():
        raise OptionError(
            f"policy {name!r}: there is no file {str(path)!r}; give its path from the folder where "
            "the server starts, or from the root"
        )
    known = f"cdsp_policy_{path.resolve().with_suffix('').as_posix().replace('.', '_')}"
    if known in sys.modules:
        return sys.modules[known]
    spec = importlib.util.spec_from_file_location(known, path.resolve())
    if spec is None or spec.loader is None:
        raise OptionError(f"policy {name!r}: {str(path)!r} is not a Python file; name another")
    module = importlib.util.module_from_spec(spec)
    sys.modules[known] = module  # where dataclasses and pickle look for a class's module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[known]
        raise
    return module
