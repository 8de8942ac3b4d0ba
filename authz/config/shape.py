"""Hold a document against the schema, and say of every difference what to write instead."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from pydantic import BaseModel, Field, ValidationError
from pydantic_core import ErrorDetails

from authz.config.document import Loc
from authz.config.problems import Problems, render_yaml, show, suggest
from authz.config.schema import CorsPart, GuardPart, RulePart, RulesFile
from authz.model import Secret

T = TypeVar("T", RulePart, GuardPart, CorsPart)

_LISTS: Final = frozenset({"rules", "guards", "cors"})
_MAPPINGS: Final = frozenset({"providers", "hosts", "identity_headers"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The typed file, or what is left of a broken one: ``left_out`` are the parts that are not in it.

    A part is an item of a list or mapping of them (one rule, one provider), or all of another top-level key.
    """

    file: RulesFile
    left_out: frozenset[Loc] = frozenset()

    def place(self, key: str, parts: Iterable[T]) -> Iterator[tuple[Loc, T]]:
        """Yield the parts of a list with where each stands in the file."""
        at = 0
        for part in parts:
            while (key, at) in self.left_out:
                at += 1
            yield (key, at), part
            at += 1

    def lacks(self, key: str, name: str) -> bool:
        """Say whether a part may be in the file, though it is not here."""
        return (key,) in self.left_out or (key, name) in self.left_out


class _Rest(RulesFile):
    """A file without what had to be there."""

    version: typing.Literal[1] = 1
    rules: list[RulePart] = Field([])


def parse_shape(value: Any, problems: Problems, *, unresolved: Iterable[Loc] = ()) -> Shape | None:
    """Return the typed file, or what is left of it, with every difference noted; None where nothing is left.

    At ``unresolved`` stands None for a value that was reported already: what the schema says to it is not.
    """
    if not isinstance(value, dict):
        problems.add((), "no mapping of keys: start with `version: 1`")
        return None
    known = frozenset(unresolved)
    around = {loc[:end] for loc in known for end in range(1, len(loc) + 1)}
    left_out = {_part(loc) for loc in known}
    try:
        file = RulesFile.model_validate(value)
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            loc, found = _look_up(detail["loc"], value)
            left_out.add(_part(loc))
            told = loc in around or any(loc[:end] in known for end in range(1, len(loc)))
            if not told or detail["type"] == "extra_forbidden":
                problems.add(loc, _message(detail, loc, found))
    else:
        if not left_out:
            return Shape(file=file)
    return _rest(value, frozenset(left_out))


def _part(loc: Loc) -> Loc:
    return loc[:2] if loc and loc[0] in _LISTS | _MAPPINGS else loc[:1]


def _rest(value: Mapping[str, Any], left_out: frozenset[Loc]) -> Shape | None:
    """Return the sound parts: a part without faults of its own stays valid when others are gone."""
    kept: dict[str, Any] = {}
    for key, part in value.items():
        if (key,) in left_out:
            continue
        if key in _LISTS:
            kept[key] = [item for at, item in enumerate(part) if (key, at) not in left_out]
        elif key in _MAPPINGS:
            kept[key] = {name: item for name, item in part.items() if (key, name) not in left_out}
        else:
            kept[key] = part
    try:
        return Shape(file=_Rest.model_validate(kept), left_out=left_out)
    except ValidationError:  # never seen, and no reason to hide what was noted
        return None


def _look_up(loc: tuple[int | str, ...], value: Any) -> tuple[Loc, object]:
    """Return the way through the document itself, without what pydantic adds for alternatives, and what is there."""
    known: list[int | str] = []
    for at, step in enumerate(loc):
        if isinstance(value, dict) and (step in value or at == len(loc) - 1) and step != "[key]":
            value = value.get(str(step))
            known.append(step)
        elif isinstance(value, list) and isinstance(step, int) and step < len(value):
            value = value[step]
            known.append(step)
    return tuple(known), known[-1] if loc and loc[-1] == "[key]" else value


def _message(detail: ErrorDetails, loc: Loc, found: object) -> str:
    context: Mapping[str, Any] = detail.get("ctx", {})
    render = _MESSAGES.get(detail["type"])
    if render is not None:
        return render(found, context, loc)
    return f"{_show(found)}: {detail['msg'].lower()}"


def _show(value: object) -> str:
    """Render the operator's value; a mapping, a list or a secret only by its kind."""
    if isinstance(value, Secret):
        return "a secret"
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    words: Mapping[object, str] = {True: "`true`", False: "`false`", None: "nothing"}
    return words[value] if isinstance(value, bool) or value is None else show(value)


def _unknown_key(_found: object, _context: Mapping[str, Any], loc: Loc) -> str:
    return f"unknown key: {suggest(str(loc[-1]), _keys_at(loc[:-1]))}"


def _no_list(found: object, _context: Mapping[str, Any], loc: Loc) -> str:
    """Return the list that was probably meant: of the value itself, or of what such a word stands in."""
    item = render_yaml(found)
    if loc[-1] == "token_in" and found in ("header", "cookie", "query"):
        item = f"{{{found}: NAME}}"
    elif loc == ("server", "grpc") and isinstance(found, str):
        item = render_yaml({"address": found})
    form = "`[…]`, or one `- ` line each" if item is None else f"`[{item}]`"
    return f"{_show(found)} is no list: write {form}"


def _no_mapping(found: object, _context: Mapping[str, Any], loc: Loc) -> str:
    address = loc[:2] == ("server", "grpc") and isinstance(found, str)
    form = f"`{render_yaml({'address': found})}`" if address else "`key: value` lines"
    return f"{_show(found)} is no mapping: write {form}"


def _no_such_word(found: object, context: Mapping[str, Any], loc: Loc) -> str:
    if loc == ("version",) and found == "1":
        return "`1` is a text here: write the number 1, without quotes"
    return f"{_show(found)} is none of {context['expected'].replace(chr(39), '`')}"


def _limit(found: object, limit: float) -> str:
    """Render a limit as the value is written: a text is a duration."""
    return f"{limit:g}s" if isinstance(found, str) else f"{limit:g}"


def _keys_at(loc: Loc) -> list[str]:
    """Return the keys that may stand at a place."""
    kind: Any = RulesFile
    for step in loc:
        if isinstance(step, str) and isinstance(kind, type) and issubclass(kind, BaseModel):
            kind = kind.model_fields[step].annotation
        else:
            kind = typing.get_args(kind)[-1]
        kind = _part_of(kind)
    return list(kind.model_fields) if isinstance(kind, type) and issubclass(kind, BaseModel) else []


def _part_of(kind: Any) -> Any:
    """Return what stands beside None in an alternative, without annotations."""
    while typing.get_origin(kind) in (typing.Union, types.UnionType, typing.Annotated):
        kind = next(its for its in typing.get_args(kind) if its is not types.NoneType)
    return kind


_Render = Callable[[object, Mapping[str, Any], Loc], str]
_MESSAGES: Final[Mapping[str, _Render]] = {
    "extra_forbidden": _unknown_key,
    "missing": lambda _, __, loc: f"is missing: add `{loc[-1]}:`",
    "value_error": lambda _, context, __: str(context["error"]),
    "literal_error": _no_such_word,
    "string_type": lambda found, _, __: f"{_show(found)} is no text: put it in quotes if it is meant as one",
    "string_too_short": lambda _, __, ___: "is empty: write a value, or remove the key",
    "string_too_long": lambda _, context, __: f"is longer than {context['max_length']} characters",
    "list_type": _no_list,
    "too_short": lambda _, context, __: (
        "an empty list never means anything: name one, or remove the key"
        if context["min_length"] == 1
        else f"needs at least {context['min_length']} of them"
    ),
    "bool_type": lambda found, _, __: f"{_show(found)} is neither `true` nor `false`",
    "int_type": lambda found, _, __: f"{_show(found)} is no whole number",
    "int_from_float": lambda found, _, __: f"{_show(found)} is no whole number",
    "dict_type": _no_mapping,
    "model_type": _no_mapping,
    "model_attributes_type": _no_mapping,
    "greater_than_equal": lambda found, context, _: (
        f"{_show(found)} is too little: at least {_limit(found, context['ge'])}"
    ),
    "less_than_equal": lambda found, context, _: f"{_show(found)} is too much: at most {_limit(found, context['le'])}",
}
