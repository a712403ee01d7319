"""Kinds of things that we rely on in SGLang, each with a check and with words."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import Protocol

from tests.contract.source import (
    Missing,
    attributes,
    class_of,
    fields,
    find,
    function_of,
    submodules,
    targets,
    top_level_names,
    tree,
)


class Need(Protocol):
    """One thing relied on."""

    @property
    def module(self) -> str:
        """Where it stands."""

    def problem(self) -> str:
        """What is no longer as relied on; "" while all is well. Raises ``Missing``, too."""

    def words(self) -> str:
        """The need in Markdown."""


def code(names: tuple[str, ...]) -> str:
    """Names as Markdown code, in a list."""
    return ", ".join(f"`{name}`" for name in names)


def lacking(what: str, wanted: tuple[str, ...], found: set[str]) -> str:
    """A sentence about the names that are wanted and not found."""
    missing = [name for name in wanted if name not in found]
    return f"{what} lacks {', '.join(missing)}" if missing else ""


@dataclass(frozen=True)
class Names:
    """A module defines (or imports) these."""

    module: str
    names: tuple[str, ...]

    def problem(self) -> str:
        return lacking(self.module, self.names, top_level_names(self.module))

    def words(self) -> str:
        return code(self.names)


@dataclass(frozen=True)
class Signature:
    """A function can be called with these arguments: in this order, then by keyword.

    ``exact``: it has these parameters and no others, since we stand in its place and get what
    its callers pass.
    """

    module: str
    name: str
    positional: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()
    exact: bool = False

    def problem(self) -> str:
        function = function_of(self.module, self.name)
        args = function.args
        ordered = [a.arg for a in (*args.posonlyargs, *args.args)]
        decorators = {ast.unparse(d) for d in function.decorator_list}
        if "." in self.name and "staticmethod" not in decorators:
            ordered = ordered[1:]
        keyword_only = [a.arg for a in args.kwonlyargs]
        required = set(ordered[: len(ordered) - len(args.defaults)])
        required |= {
            name for name, d in zip(keyword_only, args.kw_defaults, strict=True) if d is None
        }
        given = (*self.positional, *self.keywords)
        if ordered[: len(self.positional)] != list(self.positional):
            return f"{self.name} takes ({', '.join(ordered)}), not ({', '.join(self.positional)})"
        unknown = set(self.keywords) - set(ordered) - set(keyword_only)
        if unknown and args.kwarg is None:
            return f"{self.name} takes no {', '.join(sorted(unknown))}"
        if required - set(given):
            return f"{self.name} also needs {', '.join(sorted(required - set(given)))}"
        more = {*ordered, *keyword_only} - set(given)
        if self.exact and (more or args.vararg or args.kwarg):
            return f"{self.name} takes more than we pass on: {', '.join(sorted(more)) or '*'}"
        return ""

    def words(self) -> str:
        keywords = ("*", *self.keywords) if self.keywords else ()
        only = ", and nothing else" if self.exact else ""
        return f"`{self.name}({', '.join((*self.positional, *keywords))})`{only}"


@dataclass(frozen=True)
class Attributes:
    """Objects of a class have these attributes or methods, assigned in the class itself."""

    module: str
    owner: str
    names: tuple[str, ...]

    def problem(self) -> str:
        return lacking(self.owner, self.names, attributes(class_of(self.module, self.owner)))

    def words(self) -> str:
        return f"`{self.owner}`: {code(self.names)}"


@dataclass(frozen=True)
class Fields:
    """A record or an enumeration has these fields or members."""

    module: str
    owner: str
    names: tuple[str, ...]

    def problem(self) -> str:
        return lacking(self.owner, self.names, fields(class_of(self.module, self.owner)))

    def words(self) -> str:
        return f"`{self.owner}` has {code(self.names)}"


@dataclass(frozen=True)
class Options:
    """SGLang's server has these options; their declarations are spread over a package."""

    module: str
    names: tuple[str, ...]

    def problem(self) -> str:
        found: set[str] = set()
        for module in submodules(self.module):
            owners = (node for node in tree(module).body if isinstance(node, ast.ClassDef))
            found = found.union(*(fields(owner) for owner in owners))
        return lacking("the server", self.names, found)

    def words(self) -> str:
        return f"options {code(self.names)}"


@dataclass(frozen=True)
class Base:
    """A class has a base class (by the name that stands there)."""

    module: str
    owner: str
    base: str

    def problem(self) -> str:
        bases = {ast.unparse(base) for base in class_of(self.module, self.owner).bases}
        return "" if self.base in bases else f"{self.owner} is no {self.base} but {sorted(bases)}"

    def words(self) -> str:
        return f"`{self.owner}` is a `{self.base}`"


@dataclass(frozen=True)
class Calls:
    """A function (or a class somewhere) calls another; ``in_loop``: in each round."""

    module: str
    name: str
    call: str
    in_loop: bool = False

    def problem(self) -> str:
        owner = find(self.module, self.name)
        loops = [node for node in ast.walk(owner) if isinstance(node, ast.While)]
        scopes: list[ast.AST] = [*loops] if self.in_loop else [owner]
        for scope in scopes:
            for node in ast.walk(scope):
                if isinstance(node, ast.Call) and ast.unparse(node.func) == self.call:
                    return ""
        return f"{self.name} does not call {self.call}" + (" in its loop" if self.in_loop else "")

    def words(self) -> str:
        where = " in each round of its loop" if self.in_loop else ""
        return f"`{self.name}` calls `{self.call}`{where}"


@dataclass(frozen=True)
class Order:
    """In a function these texts stand one after the other."""

    module: str
    name: str
    texts: tuple[str, ...]

    def problem(self) -> str:
        said = ast.unparse(find(self.module, self.name))
        at = 0
        for text in self.texts:
            # As it stands, too: a keyword argument alone would read as an assignment.
            places = [said.find(form, at) for form in {text, normal(text)}]
            if max(places) < 0:
                return f"{self.name} does not say {text!r}" + (" after the rest" if at else "")
            at = min(place for place in places if place >= 0) + 1
        return ""

    def words(self) -> str:
        return f"`{self.name}` says " + ", then ".join(f"`{text}`" for text in self.texts)


@dataclass(frozen=True)
class Sends:
    """A function sends a message of these frames, in this order."""

    module: str
    name: str
    frames: tuple[str, ...]

    def problem(self) -> str:
        wanted = [normal(frame) for frame in self.frames]
        for node in ast.walk(function_of(self.module, self.name)):
            if isinstance(node, ast.List):
                frames = [ast.unparse(element) for element in node.elts]
                if frames[: len(wanted)] == wanted:
                    return ""
        return f"{self.name} sends no message of frames {', '.join(self.frames)}"

    def words(self) -> str:
        return f"`{self.name}` sends the frames {code(self.frames)}"


@dataclass(frozen=True)
class Value:
    """A module or class binds a name to this expression."""

    module: str
    name: str
    value: str

    def problem(self) -> str:
        owner, _, name = self.name.rpartition(".")
        scope = class_of(self.module, owner) if owner else tree(self.module)
        for node in scope.body:
            if any(ast.unparse(target) == name for target in targets(node)):
                found = ast.unparse(node.value)  # type: ignore[attr-defined]
                return "" if found == normal(self.value) else f"{self.name} is {found}"
        raise Missing(f"{self.module} does not bind {self.name}")

    def words(self) -> str:
        return f"`{self.name}` is `{self.value}`"


@dataclass(frozen=True)
class Keys:
    """A function builds a dictionary with these keys."""

    module: str
    name: str
    keys: tuple[str, ...]

    def problem(self) -> str:
        best: set[str] = set()
        for node in ast.walk(function_of(self.module, self.name)):
            if isinstance(node, ast.Dict):
                keys = {k.value for k in node.keys if isinstance(k, ast.Constant)}
                best = max(best, {str(key) for key in keys}, key=lambda s: len(s & set(self.keys)))
        return lacking(f"{self.name}'s dictionary", self.keys, best)

    def words(self) -> str:
        return f"`{self.name}` builds a dictionary with {code(self.keys)}"


def normal(text: str) -> str:
    """Source text as ``ast`` writes it; fragments, which do not parse alone, as they are."""
    try:
        return ast.unparse(ast.parse(text, mode="eval"))
    except SyntaxError:
        pass
    try:
        return ast.unparse(ast.parse(text)).strip()
    except SyntaxError:
        return text


__all__ = [
    "Attributes",
    "Base",
    "Calls",
    "Fields",
    "Keys",
    "Names",
    "Need",
    "Options",
    "Order",
    "Sends",
    "Signature",
    "Value",
]
