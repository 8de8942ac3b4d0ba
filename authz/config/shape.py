"""Hold a document against the schema, and say of every difference what to write instead."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Final

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from authz.config.document import Loc
from authz.config.problems import Problems, show, suggest
from authz.config.schema import RulesFile
from authz.model import Secret


def parse_shape(value: Any, problems: Problems) -> RulesFile | None:
    """Return the typed file, or None with every difference noted."""
    if not isinstance(value, dict):
        problems.add((), "no mapping of keys: start with `version: 1`")
        return None
    try:
        return RulesFile.model_validate(value)
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            loc = _loc_of(detail["loc"], value)
            problems.add(loc, _message(detail, loc))
        return None


def _loc_of(loc: tuple[int | str, ...], value: Any) -> Loc:
    """Return the way through the document itself, without what pydantic adds for keys and alternatives."""
    known: list[int | str] = []
    for at, step in enumerate(loc):
        if isinstance(value, dict) and (step in value or at == len(loc) - 1) and step != "[key]":
            value = value.get(str(step))
            known.append(step)
        elif isinstance(value, list) and isinstance(step, int) and step < len(value):
            value = value[step]
            known.append(step)
    return tuple(known)


def _message(detail: ErrorDetails, loc: Loc) -> str:
    context: Mapping[str, Any] = detail.get("ctx", {})
    render = _MESSAGES.get(detail["type"])
    if render is not None:
        return render(_show(detail["input"]), context, loc)
    return f"{_show(detail['input'])}: {detail['msg'].lower()}"


def _show(value: object) -> str:
    """Render the operator's value; a mapping, a list or a secret only by its kind."""
    if isinstance(value, Secret):
        return "a secret"
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    words: Mapping[object, str] = {True: "`true`", False: "`false`", None: "nothing"}
    return words[value] if isinstance(value, bool) or value is None else show(value)


def _unknown_key(_shown: str, _context: Mapping[str, Any], loc: Loc) -> str:
    return f"unknown key: {suggest(str(loc[-1]), _keys_at(loc[:-1]))}"


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


_Render = Callable[[str, Mapping[str, Any], Loc], str]
_MESSAGES: Final[Mapping[str, _Render]] = {
    "extra_forbidden": _unknown_key,
    "missing": lambda _, __, loc: f"is missing: add `{loc[-1]}:`",
    "value_error": lambda _, context, __: str(context["error"]),
    "literal_error": lambda shown, context, _: f"{shown} is none of {context['expected'].replace(chr(39), '`')}",
    "string_type": lambda shown, _, __: f"{shown} is no text: put it in quotes if it is meant as one",
    "string_too_short": lambda _, __, ___: "is empty: write a value, or remove the key",
    "string_too_long": lambda _, context, __: f"is longer than {context['max_length']} characters",
    "list_type": lambda shown, _, __: f"{shown} is no list: write `[…]`, or one `- ` line each",
    "too_short": lambda _, context, __: (
        "an empty list never means anything: name one, or remove the key"
        if context["min_length"] == 1
        else f"needs at least {context['min_length']} of them"
    ),
    "bool_type": lambda shown, _, __: f"{shown} is neither `true` nor `false`",
    "int_type": lambda shown, _, __: f"{shown} is no whole number",
    "int_from_float": lambda shown, _, __: f"{shown} is no whole number",
    "dict_type": lambda shown, _, __: f"{shown} is no mapping: write `key: value` lines",
    "model_type": lambda shown, _, __: f"{shown} is no mapping: write `key: value` lines",
    "model_attributes_type": lambda shown, _, __: f"{shown} is no mapping: write `key: value` lines",
    "greater_than_equal": lambda shown, context, _: f"{shown} is too little: at least {context['ge']:g}",
    "less_than_equal": lambda shown, context, _: f"{shown} is too much: at most {context['le']:g}",
}
