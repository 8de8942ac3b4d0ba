"""What stands where a requirement looked, for people: bounded, and never a token.

A value is what the token, the request or the patterns say, cut where it is long. Whatever holds the presented token, or
reads like a token of another kind, is hidden, and so is every header that carries credentials.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from authz.core.condition import Condition, Facts, list_members
from authz.core.require import (
    ClaimTest,
    ClientTest,
    GroupTest,
    NetworkTest,
    RoleTest,
    ScopeTest,
    Test,
    WhenTest,
    match_claim,
    render_role,
)
from authz.model import Principal, Request

HIDDEN: Final = "[hidden]"
SECRET_HEADERS: Final = frozenset({"authorization", "proxy-authorization", "cookie", "set-cookie"})
"""What is set in them is never shown, whatever it is."""

MAX_TEXT_CHARS: Final = 128
MAX_ITEMS: Final = 32
MAX_DEPTH: Final = 4

_MIN_INSIDE_CHARS: Final = 8
"""A shorter token is looked for as a whole value only: as a part, `a` would hide everything."""

_SECRET_NAME: Final = re.compile("auth|cookie|token|secret|key|session|password")
"""What a request's headers are called that nobody wants to see in a log, such as ``x-api-key``."""

_TOKENS: Final = re.compile(
    r"(?:bearer|basic)\s+\S+|eyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*\.?[A-Za-z0-9_.-]*|[A-Za-z0-9_+=~-]{40,}", re.IGNORECASE
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Values by name, fit for JSON; ``missing`` are the names that were looked for and are not there."""

    values: Mapping[str, object]
    missing: tuple[str, ...] = ()


_Values = Mapping[str, object]


def match_found(test: Test, facts: Facts, *, token: str = "") -> Found:
    """Return what one requirement looks at. ``token`` is the presented one, to be hidden."""
    match test:
        case WhenTest():
            seen = dict(_read_condition(test.condition, facts))
        case NetworkTest():
            seen = {"address": facts.address}
        case _ if facts.principal is None:
            seen = {"principal": None}
        case ClaimTest():
            seen = {f"claims.{'.'.join(test.place)}": match_claim(facts.principal.claims, test.place)}
        case _:
            seen = dict(_READERS[type(test)](facts.principal))
    values = {name: show_value(value, token=token) for name, value in seen.items() if value is not None}
    return Found(values=values, missing=tuple(name for name, value in seen.items() if value is None))


def show_value(value: object, *, token: str = "", depth: int = 0) -> object:
    """Return a JSON value cut to what a person reads, without anything that reads like a token."""
    if isinstance(value, str):
        return show_text(value, token=token)
    if value is None or isinstance(value, bool | int | float):
        return value
    if depth == MAX_DEPTH:
        return "…"
    if isinstance(value, Mapping):
        shown = {
            show_text(str(name), token=token): show_value(inner, token=token, depth=depth + 1)
            for name, inner in list(value.items())[:MAX_ITEMS]
        }
        return shown | ({"…": f"{len(value) - MAX_ITEMS} more"} if len(value) > MAX_ITEMS else {})
    if not isinstance(value, list | tuple):
        return show_text(str(value), token=token)
    more = [f"… {len(value) - MAX_ITEMS} more"] if len(value) > MAX_ITEMS else []
    return [show_value(inner, token=token, depth=depth + 1) for inner in value[:MAX_ITEMS]] + more


def show_text(text: str, *, token: str = "") -> str:
    """Return a text cut to what a person reads, without anything that reads like a token."""
    shown = hide_tokens(text, token=token)
    return shown if len(shown) <= MAX_TEXT_CHARS else f"{shown[:MAX_TEXT_CHARS]}…"


def hide_tokens(text: str, *, token: str = "") -> str:
    """Return a whole text without anything that reads like a token."""
    if token and (text == token or (len(token) >= _MIN_INSIDE_CHARS and token in text)):
        return HIDDEN
    return _TOKENS.sub(HIDDEN, text)


def _read_condition(condition: Condition, facts: Facts) -> Iterator[tuple[str, object]]:
    """Yield the members that an expression names; of claims as a whole, and of headers, only what is no value."""
    for variable, members in sorted(condition.uses.items()):
        known = _VARIABLES[variable](facts)
        if variable == "claims" and members is None:
            yield "claims", sorted(known)
            continue
        for member in sorted(known if members is None else members):
            value = known.get(member)
            if (variable, member) == ("request", "headers"):
                value = _read_headers(facts.request, condition.text)
            yield f"{variable}.{member}", value


def _read_headers(request: Request, expression: str) -> Mapping[str, str]:
    """Return the headers whose names stand in the expression."""
    return {
        name: HIDDEN if _SECRET_NAME.search(name) else value
        for name, value in request.headers.items()
        if name in expression
    }


def _read_request(facts: Facts) -> _Values:
    request = facts.request
    return {
        "method": request.method,
        "host": request.host.name,
        "path": "/" + "/".join(request.target.segments),
        "scheme": request.scheme,
        "protocol": request.protocol,
        "headers": request.headers,
    }


def _read_principal(facts: Facts) -> _Values:
    return {} if facts.principal is None else list_members(facts.principal)


_VARIABLES: Final[Mapping[str, Callable[[Facts], _Values]]] = {
    "claims": lambda facts: {} if facts.principal is None else facts.principal.claims,
    "request": _read_request,
    "principal": _read_principal,
    "source": lambda facts: {"principal": facts.request.source_principal, "address": facts.address},
    "host": lambda facts: facts.host,
    "path": lambda facts: facts.path,
    "context": lambda facts: facts.request.context,
}
"""What a condition's variables hold, as :mod:`authz.core.condition` hands them over."""

_READERS: Final[Mapping[type[Test], Callable[[Principal], _Values]]] = {
    RoleTest: lambda principal: {"roles": [render_role(role) for role in sorted(principal.roles)]},
    GroupTest: lambda principal: {"groups": sorted(principal.groups)},
    ScopeTest: lambda principal: {"scopes": sorted(principal.scopes)},
    ClientTest: lambda principal: {"client": principal.client_id},
}
