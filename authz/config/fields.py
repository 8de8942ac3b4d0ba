"""The values of the rules file that have more than one spelling: durations, choices, places, one name or a list.

Each type reads the operator's spelling into one shape, and tells editors (JSON Schema) which spellings there are.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from authz.config.problems import render_yaml, show, suggest
from authz.core.headers import FORBIDDEN, fold_name, parse_header_name
from authz.core.hosts import EVERYWHERE_WORD
from authz.model import CredentialPlace, PlaceKind

MAX_NAME_CHARS: Final = 80
MAX_DURATION_DIGITS: Final = 15
"""As many as a plain number may have; none that is meant has half of them."""

_UNITS_S: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
_DURATION: Final = re.compile(rf"([0-9]{{1,{MAX_DURATION_DIGITS}}})(ms|s|m|h|d)")
_DURATION_SCHEMA: Final[dict[str, Any]] = {
    "anyOf": [
        {"type": "number", "minimum": 0},
        {"type": "string", "pattern": rf"^({_DURATION.pattern}|\$\{{env:.+\}})$"},
    ],
    "description": "seconds, or a text such as 30s, 5m, 24h",
}
_COOKIE_NAME: Final = re.compile(r"[A-Za-z0-9!#$&*+.^_`|~-]+")
_QUERY_NAME: Final = re.compile(r"[A-Za-z0-9_.~-]+")
_PLACE_KEYS: Final = ("header", "cookie", "query")


@dataclass(frozen=True, slots=True)
class Choice:
    """Several names of which any or all are needed, or one that stands alone. ``items`` is never empty."""

    items: tuple[Any, ...]
    every: bool = False


def parse_duration(value: object) -> float:
    """Read seconds, or a whole number with a unit.

    Raises:
        ValueError: with a message for the operator.

    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        if value < 0:
            raise ValueError(f"{show(value)} is negative: write seconds, or a text such as `30s`, `5m`, `24h`")
        return float(value)
    found = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise ValueError(f"{show(value)} is no duration: write seconds, or a text such as `30s`, `5m`, `24h`")
    return int(found[1]) * _UNITS_S[found[2]]


def parse_choice(value: object) -> Choice:
    """Read one name, ``{any: [...]}`` or ``{all: [...]}``.

    A list alone is refused, also of one name: it would not say what a second one means.

    Raises:
        ValueError: with a message for the operator.

    """
    if isinstance(value, list):
        names = ", ".join(str(item) for item in value)
        if len(value) == 1:
            raise ValueError(
                f"{show(f'[{names}]')} does not say what a second one would mean: write {show(names)} alone"
            )
        raise ValueError(
            f"a list does not say whether any or all are needed: write `{{any: [{names}]}}` or `{{all: …}}`"
        )
    if not isinstance(value, dict) or not {"any", "all"} & value.keys():
        return Choice((value,))
    if len(value) != 1:
        raise ValueError("takes one of `any` and `all`, and nothing beside it")
    word, items = next(iter(value.items()))
    if not isinstance(items, list):
        raise ValueError(f"`{word}` needs a list: write `{{{word}: [{items}]}}`")
    if not items:
        raise ValueError(f"`{word}` names nothing: an empty list never means anything, name one or remove the key")
    for at, item in enumerate(items):
        if item in items[:at] and type(item) is type(items[items.index(item)]):
            raise ValueError(f"{show(item)} stands twice")
    return Choice(tuple(items), every=word == "all")


def parse_names(value: object) -> Choice:
    """Read a choice of texts.

    Raises:
        ValueError: with a message for the operator.

    """
    choice = parse_choice(value)
    for item in choice.items:
        if not isinstance(item, str) or not item:
            raise ValueError(f"{show(item)} is no name: write a text, in quotes if it looks like a number")
    return choice


def parse_scalars(value: object) -> Choice:
    """Read a choice of texts, numbers and truth values.

    Raises:
        ValueError: with a message for the operator.

    """
    choice = parse_choice(value)
    for item in choice.items:
        if not isinstance(item, str | int | float):
            raise ValueError("a claim is compared with texts, numbers and truth values only: use `when` for more")
    return choice


def parse_roles(value: object) -> Choice:
    """Read a choice of roles: ``role``, ``client:role`` or ``{client: …, role: …}``, as (client, role).

    Raises:
        ValueError: with a message for the operator.

    """
    choice = parse_choice(value)
    return Choice(tuple(_parse_role(item) for item in choice.items), every=choice.every)


def _parse_role(item: object) -> tuple[str, str]:
    if isinstance(item, dict):
        client, role = item.get("client"), item.get("role")
        if item.keys() != {"client", "role"} or not isinstance(client, str) or not isinstance(role, str):
            raise ValueError("a role is `role`, `client:role` or `{client: …, role: …}`, and several are `{any: […]}`")
    elif isinstance(item, str):
        if item.count(":") > 1:
            raise ValueError(f"{show(item)} has more than one `:`: write `{{client: …, role: …}}`")
        client, colon, role = item.rpartition(":")
        if colon and not client:
            raise ValueError(f"{show(item)} names no client: write `{{client: …, role: …}}` or the role alone")
    else:
        raise ValueError(f"{show(item)} is no role: write a text, in quotes if it looks like a number")
    if not role or (isinstance(item, dict) and not client):
        raise ValueError(f"{show(item)} names no role: write `role`, `client:role` or `{{client: …, role: …}}`")
    return client, role


def parse_claim_place(text: str) -> tuple[str, ...]:
    """Read a path of member names: ``realm_access.roles``, or ``["name.with.dots"]``.

    Raises:
        ValueError: with a message for the operator.

    """
    names = (text[2:-2],) if text.startswith('["') and text.endswith('"]') else tuple(text.split("."))
    if not all(names):
        raise ValueError(f'{show(text)} is no place of a claim: write `a.b`, or `["a.b"]` where the dot is in the name')
    return names


def parse_place(value: object) -> CredentialPlace:
    """Read where a token stands.

    Raises:
        ValueError: with a message for the operator.

    """
    if value == "authorization":
        return CredentialPlace(kind=PlaceKind.AUTHORIZATION)
    if not isinstance(value, dict) or len(value) != 1:
        raise ValueError("a place is `authorization`, `{header: NAME}`, `{cookie: NAME}` or `{query: NAME}`")
    word, name = next(iter(value.items()))
    if word not in _PLACE_KEYS:
        raise ValueError(f"unknown place {show(word)}: {suggest(word, _PLACE_KEYS)}")
    if not isinstance(name, str):
        raise ValueError(f"{show(name)} is no name: write a text, in quotes if it looks like a number")
    if word == "header":
        header = parse_header_name(name)
        if header == "authorization":
            raise ValueError("`authorization` is a place of its own: write `authorization` without `header`")
        if fold_name(header) in FORBIDDEN:
            raise ValueError(f"`{header}` means something else to proxies: choose a header of its own for the token")
        return CredentialPlace(kind=PlaceKind.HEADER, name=header)
    if not (_COOKIE_NAME if word == "cookie" else _QUERY_NAME).fullmatch(name):
        raise ValueError(f"{show(name)} is not safe as the name of a {word}: write letters, digits, `-`, `_` and `.`")
    return CredentialPlace(kind=PlaceKind(word), name=name)


def _parse_hosts(value: object) -> object:
    if value == EVERYWHERE_WORD:
        return [EVERYWHERE_WORD]
    if isinstance(value, str):
        raise ValueError(f"is a text: write the list `[{render_yaml(value) or '…'}]`, or `everywhere`")
    if isinstance(value, list) and EVERYWHERE_WORD in value:
        raise ValueError("`everywhere` stands alone, not in a list: write `hosts: everywhere`")
    return value


def _parse_provider_name(value: object) -> object:
    if isinstance(value, list) and len(value) > 1:
        raise ValueError("several providers: write `any_of` with a branch for each, so that each says what it requires")
    if isinstance(value, list) and value:
        return value[0]
    if value == []:
        raise ValueError("names no provider: name one, or write `allow: anyone`")
    return value


def _parse_authorization(value: object) -> object:
    replaced = value.get("replace") if isinstance(value, dict) and len(value) == 1 else None
    if value in ("keep", "remove") or isinstance(replaced, str):
        return value
    raise ValueError("`authorization` is `keep`, `remove` or `{replace: TEMPLATE}`")


def _parse_audiences(value: object) -> object:
    if value == "any_audience":
        return None
    if isinstance(value, str):
        text = f"is a text: write the list `[{render_yaml(value) or '…'}]`; `any_audience` opts out of checking it"
        raise ValueError(text)
    return value


def _names_schema(item: dict[str, Any]) -> dict[str, Any]:
    several = {"type": "array", "items": item, "minItems": 1}
    return {
        "anyOf": [
            item,
            {"type": "object", "properties": {"any": several}, "required": ["any"], "additionalProperties": False},
            {"type": "object", "properties": {"all": several}, "required": ["all"], "additionalProperties": False},
        ]
    }


_TEXT: Final = {"type": "string", "minLength": 1}
_ROLE: Final[dict[str, Any]] = {
    "anyOf": [
        _TEXT,
        {
            "type": "object",
            "properties": {"client": _TEXT, "role": _TEXT},
            "required": ["client", "role"],
            "additionalProperties": False,
        },
    ]
}
_PLACE: Final[dict[str, Any]] = {
    "anyOf": [
        {"const": "authorization"},
        *(
            {"type": "object", "properties": {key: _TEXT}, "required": [key], "additionalProperties": False}
            for key in _PLACE_KEYS
        ),
    ]
}
_HOSTS: Final[dict[str, Any]] = {
    "anyOf": [
        {"const": EVERYWHERE_WORD},
        {"type": "array", "items": _TEXT | {"not": {"const": EVERYWHERE_WORD}}, "minItems": 1},
    ],
    "description": "exact names, `*.suffix`, `{label}.suffix`; or the word everywhere",
}
_AUTHORIZATION: Final[dict[str, Any]] = {
    "anyOf": [
        {"enum": ["keep", "remove"]},
        {
            "type": "object",
            "properties": {"replace": _TEXT},
            "required": ["replace"],
            "additionalProperties": False,
        },
    ]
}
_AUDIENCES: Final[dict[str, Any]] = {
    "anyOf": [{"const": "any_audience"}, {"type": "array", "items": _TEXT, "minItems": 1}],
    "description": "the audiences that are ours; any_audience opts out, loudly",
}
_ONE_PROVIDER: Final[dict[str, Any]] = {
    "anyOf": [_TEXT, {"type": "array", "items": _TEXT, "minItems": 1, "maxItems": 1}]
}

Text = Annotated[str, Field(min_length=1)]
Seconds = Annotated[float, BeforeValidator(parse_duration), WithJsonSchema(_DURATION_SCHEMA)]
Names = Annotated[Any, BeforeValidator(parse_names), WithJsonSchema(_names_schema(_TEXT))]
Roles = Annotated[Any, BeforeValidator(parse_roles), WithJsonSchema(_names_schema(_ROLE))]
Scalars = Annotated[
    Any, BeforeValidator(parse_scalars), WithJsonSchema(_names_schema({"type": ["string", "number", "boolean"]}))
]
Place = Annotated[Any, BeforeValidator(parse_place), WithJsonSchema(_PLACE)]
Hosts = Annotated[list[Text], Field(min_length=1), BeforeValidator(_parse_hosts), WithJsonSchema(_HOSTS)]
ProviderName = Annotated[Text, BeforeValidator(_parse_provider_name), WithJsonSchema(_ONE_PROVIDER)]
Authorization = Annotated[
    Literal["keep", "remove"] | dict[str, str], BeforeValidator(_parse_authorization), WithJsonSchema(_AUTHORIZATION)
]
Audiences = Annotated[
    list[Text] | None, Field(min_length=1), BeforeValidator(_parse_audiences), WithJsonSchema(_AUDIENCES)
]
