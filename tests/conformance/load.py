"""Read the cases, what they expect and where each comes from. What is misspelt or says nothing is an error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

FOLDER: Final = Path(__file__).parent
BASE_HTTP: Final[Mapping[str, Any]] = {
    "method": "GET",
    "host": "api.example",
    "path": "/public",
    "scheme": "https",
    "protocol": "HTTP/2",
    "size": -1,
}
BASE_ATTRIBUTES: Final[Mapping[str, Any]] = {
    "source": {"address": {"socket_address": {"address": "198.51.100.7", "port_value": 40_000}}},
    "destination": {"address": {"socket_address": {"address": "10.0.0.1", "port_value": 8_443}}},
}
MAX_TIME_S: Final = 10.0
"""What a caller waits for where a case does not say."""

_OF_ALLOWS: Final = ("sets", "removes", "keeps", "adds", "appends", "may_add", "removes_query")
_OF_DENIES: Final = ("status", "reason", "headers", "body")

Schema = Literal["target", "future", "octets", "garbage"]


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Wanted(_Part):
    """What a text must have in it and what not; with neither it must be there."""

    has: list[str] = []
    lacks: list[str] = []


class WantedBody(Wanted):
    """What a body must have in it; ``json`` are members of the object that it is."""

    members: dict[str, Any] = Field({}, alias="json")


class Expect(_Part):
    """What the answer must be.

    Of an allow: the headers that it ``sets``, ``removes`` and ``keeps`` as they are upstream, that it ``adds`` to the
    client's answer or ``appends`` there, the query parameters that it removes. It sets, adds and removes nothing else
    but what ``may_add`` names: headers of the client's answer that are compared where another case ``adds`` them. Of a
    deny: ``status``, ``headers`` and
    ``body`` of the client's answer; ``reason`` is one of some. ``code`` is the ``google.rpc.Code``.
    """

    verdict: Literal["allow", "deny"]
    status: int | None = None
    code: int | None = None
    reason: Annotated[list[str], BeforeValidator(_listed)] = []
    sets: dict[str, str] = {}
    removes: list[str] = []
    keeps: list[str] = []
    adds: dict[str, str] = {}
    appends: dict[str, str] = {}
    may_add: list[str] = []
    removes_query: list[str] = []
    headers: dict[str, str | Wanted] = {}
    lacks_headers: list[str] = []
    body: WantedBody | None = None
    metadata: dict[str, str] = {}
    lacks_metadata: list[str] = []
    within_s: float | None = None

    @model_validator(mode="after")
    def check_kinds(self) -> Expect:
        """Refuse what an answer of this kind cannot have: it would never be looked at."""
        for name in _OF_DENIES if self.verdict == "allow" else _OF_ALLOWS:
            if getattr(self, name):
                raise ValueError(f"`{name}` is nothing that a verdict `{self.verdict}` has")
        return self


class _CasePart(_Part):
    """One case as it is written."""

    name: str
    statement: str | None = Field(None, alias="from")
    schema_name: Schema | None = Field(None, alias="schema")
    http: dict[str, Any] = {}
    bearer: str | None = None
    attributes: dict[str, Any] = {}
    top: dict[str, Any] = {}
    request: dict[str, Any] | None = None
    metadata: dict[str, str] = {}
    max_time_s: float | None = MAX_TIME_S
    expect: Any


class _Group(_Part):
    """One file of cases, and what they have in common."""

    group: str
    about: str
    statement: str = Field(alias="from")
    schema_name: Schema = Field("target", alias="schema")
    http: dict[str, Any] = {}
    cases: list[_CasePart] = Field(min_length=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """Where something is said, and what."""

    source: str
    says: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One question, with the answer that a server must give.

    ``request`` is a ``CheckRequest`` in JSON, with places to fill in. ``metadata`` goes beside it, as a proxy's trace
    headers do. ``max_time_s`` None means that the caller names no deadline.
    """

    group: str
    name: str
    origin: str
    statement: Statement
    schema: Schema
    request: Mapping[str, Any]
    metadata: Mapping[str, str]
    max_time_s: float | None
    expect: Expect


def load_statements() -> dict[str, Statement]:
    """Return every statement by the name that cases call it."""
    return {name: Statement(**its) for name, its in _read("statements.yaml").items()}


def load_identity_headers() -> frozenset[str]:
    """Return the names of the identity headers that a server is set to: ours, whatever a client sends."""
    return frozenset(_read("rules.yaml")["identity_headers"])


def load_cases() -> tuple[Case, ...]:
    """Return every case, in the order of the files.

    Raises:
        ValueError: for a key that there is not, a statement that nobody made, or a name that stands twice.

    """
    statements, answers = load_statements(), _read("answers.yaml")
    found: list[Case] = []
    for path in sorted((FOLDER / "cases").glob("*.yaml")):
        group = _Group.model_validate(_read(f"cases/{path.name}"))
        for part in group.cases:
            origin = part.statement or group.statement
            if origin not in statements:
                raise ValueError(f"`{group.group}: {part.name}` comes from `{origin}`, which is no statement")
            if any((its.group, its.name) == (group.group, part.name) for its in found):
                raise ValueError(f"`{group.group}: {part.name}` stands twice")
            found.append(
                Case(
                    group=group.group,
                    name=part.name,
                    origin=origin,
                    statement=statements[origin],
                    schema=part.schema_name or group.schema_name,
                    request=_build_request(group, part),
                    metadata=part.metadata,
                    max_time_s=part.max_time_s,
                    expect=_build_expect(part.expect, answers),
                )
            )
    return tuple(found)


def _read(name: str) -> Any:
    # The quick loader where there is one: the other takes a second for all files.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load((FOLDER / name).read_text(encoding="utf-8"), Loader=loader)  # noqa: S506 - a safe one


def _build_request(group: _Group, part: _CasePart) -> dict[str, Any]:
    if part.request is not None:
        if part.http or part.bearer or part.attributes or part.top:
            raise ValueError(f"`{group.group}: {part.name}` has a whole `request`, and parts of one beside it")
        return part.request
    http = {**BASE_HTTP, **group.http, **part.http}
    if part.bearer is not None:
        headers = http.get("headers", {})
        if "authorization" in headers:
            raise ValueError(f"`{group.group}: {part.name}` has two values for `authorization`")
        http["headers"] = headers | {"authorization": f"Bearer ${{token:{part.bearer}}}"}
    return {"attributes": {**BASE_ATTRIBUTES, **part.attributes, "request": {"http": http}}, **part.top}


def _build_expect(written: Any, answers: Mapping[str, Any]) -> Expect:
    """Read an expectation: a mapping, or the name of one that several cases share, alone or with a reason.

    A mapping that is ``like`` one of those says what it wants besides.
    """
    if isinstance(written, dict):
        like = answers[written["like"]] if "like" in written else {}
        return Expect.model_validate(_merge(like, {name: its for name, its in written.items() if name != "like"}))
    name, *reasons = [written] if isinstance(written, str) else written
    if name not in answers:
        raise ValueError(f"`{name}` is none of `answers.yaml`: write one of {', '.join(sorted(answers))}")
    return Expect.model_validate(answers[name] | ({"reason": reasons} if reasons else {}))


def _merge(begun: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    both = {name: begun[name] | its for name, its in more.items() if isinstance(begun.get(name), dict)}
    return {**begun, **more, **both}
