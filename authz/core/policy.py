"""The operator's whole intent, compiled and frozen: which rule judges a request, and which guards.

Which rule: the narrowest host pattern with rules of its own has a table; in it the most specific path pattern decides,
and then the method. Rules for ``everywhere`` compete by path in every table. Guards are AND-ed onto every rule they
cover and cannot be shadowed. Built by ``authz.core.tables``; nothing here changes after that.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from authz.core.cors import Cors
from authz.core.credentials import AUTHORIZATION
from authz.core.headers import IdentityHeaders, Template
from authz.core.hosts import HostIndex, HostPattern
from authz.core.path import other_readings
from authz.core.require import Test
from authz.core.trie import Node, PathPattern, match_all_paths, match_path
from authz.model import (
    Ambiguity,
    Answer,
    CredentialPlace,
    HeaderEdit,
    Host,
    Reason,
    Rejected,
    Target,
)
from authz.quick import quick

NO_CAPTURES: Final[Mapping[str, str]] = MappingProxyType({})


class Access(enum.StrEnum):
    """Whom a rule lets ask at all."""

    ANYONE = "anyone"
    OPTIONAL = "optional"
    NOBODY = "nobody"
    PROVED = "proved"


class Keep(enum.StrEnum):
    """What becomes of the ``authorization`` header on an allow, where it is not replaced."""

    PROVED = "proved"
    ALWAYS = "keep"
    NEVER = "remove"


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """One provider whose tokens a rule takes, with what it then requires."""

    provider: str
    tests: tuple[Test, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outfit:
    """What becomes of the headers of whoever passes. Rules that do the same share one, compared by identity.

    ``authorization`` says what happens to that header: PROVED keeps it only if it is the credential that was proved.
    ``token_headers`` are those that the rule takes tokens from, which no upstream sees. ``folded`` are all names that
    are ours, as a careless upstream reads them. ``derived`` keeps the edits for nobody.
    """

    identity: IdentityHeaders = field(default_factory=IdentityHeaders)
    authorization: Keep | Template = Keep.PROVED
    token_headers: tuple[str, ...] = ()
    folded: frozenset[str] = frozenset()
    derived: dict[object, Any] = field(init=False, default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One line of the operator's intent. ``methods`` None means every method.

    ``branches`` is empty exactly for ANYONE and NOBODY.
    """

    name: str
    hosts: tuple[HostPattern, ...]
    paths: tuple[PathPattern, ...]
    access: Access
    methods: frozenset[str] | None = None
    branches: tuple[Branch, ...] = ()
    places: tuple[CredentialPlace, ...] = (AUTHORIZATION,)
    accept: frozenset[Ambiguity] = frozenset()
    outfit: Outfit = field(default_factory=Outfit)
    response_headers: tuple[HeaderEdit, ...] = ()
    answers: Mapping[int, Answer] = field(default_factory=lambda: MappingProxyType({}))
    line: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """A requirement on every request to some hosts and paths, whichever rule judges it."""

    name: str
    hosts: tuple[HostPattern, ...]
    paths: tuple[PathPattern, ...]
    tests: tuple[Test, ...]
    line: int = 0


@dataclass(frozen=True, slots=True)
class RuleEntry:
    """A rule as one of its patterns reaches it."""

    rule: Rule
    host: HostPattern
    path: PathPattern


@dataclass(frozen=True, slots=True)
class GuardEntry:
    """A guard as one of its patterns reaches it."""

    guard: Guard
    host: HostPattern
    path: PathPattern


@dataclass(slots=True)
class Methods:
    """The rules of one path pattern by method; ``rest`` takes the methods that none names. Built once, at load."""

    named: dict[str, RuleEntry] = field(default_factory=dict)
    rest: RuleEntry | None = None

    def match(self, method: str) -> RuleEntry | None:
        """Return the entry for a method: one that names it first, GET covers HEAD."""
        found = self.named.get(method)
        if found is None and method == "HEAD":
            found = self.named.get("GET")
        return found if found is not None else self.rest

    def entries(self) -> Iterator[RuleEntry]:
        """Yield every entry."""
        yield from self.named.values()
        if self.rest is not None:
            yield self.rest


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """All rules that compete for the hosts of one pattern. Its token cookies and parameters reach no upstream."""

    root: Node[Methods]
    cookies: frozenset[str] = frozenset()
    parameters: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Covering:
    """A guard that covers a request, with what its patterns captured."""

    guard: Guard
    host: Mapping[str, str]
    path: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """The rule that judges a request, and what its patterns captured, worked out where it is asked for."""

    rule: Rule
    table: Table
    entry: RuleEntry
    name: str
    segments: tuple[str, ...]

    @property
    def host(self) -> Mapping[str, str]:
        """What the host pattern captured."""
        return _capture_host(self.entry.host, self.name)

    @property
    def path(self) -> Mapping[str, str]:
        """What the path pattern captured."""
        return _capture_path(self.entry.path, self.segments)


_new_match: Final = quick(Match)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Everything that decides, and nothing that waits."""

    rules: tuple[Rule, ...]
    guards: tuple[Guard, ...]
    tables: HostIndex[Table]
    guard_tables: HostIndex[Node[tuple[GuardEntry, ...]]]
    cors: HostIndex[Cors] = field(default_factory=lambda: HostIndex({}, {}, {}, None))
    trusted_hops: int = 0


def match_rule(policy: Policy, host: Host, target: Target, method: str) -> Match:
    """Find the one rule that judges a request.

    Raises:
        Rejected: NO_RULE, or METHOD_NOT_COVERED where the most specific pattern has no rule for the method: there is
            never a fall back to a broader path (invariant DENY-BY-DEFAULT).

    """
    table = policy.tables.match_first(host.name)
    if table is None or target.asterisk:
        raise Rejected(Reason.NO_RULE)
    methods = match_path(table.root, target.segments)
    if methods is None:
        raise Rejected(Reason.NO_RULE)
    entry = methods.match(method)
    if entry is None:
        known = ", ".join(sorted(methods.named))
        raise Rejected(Reason.METHOD_NOT_COVERED, f"the most specific rules of this path are for {known}")
    return _new_match(rule=entry.rule, table=table, entry=entry, name=host.name, segments=target.segments)


def match_guards(policy: Policy, host: Host, target: Target) -> tuple[Covering, ...]:
    """Find every guard that covers a request, also by what an upstream may make of an accepted ambiguity."""
    if not policy.guards:
        return ()
    found: dict[tuple[str, tuple[str, ...]], Covering] = {}
    for root in policy.guard_tables.match_all(host.name):
        for segments in (target.segments, *other_readings(target)):
            for entries in match_all_paths(root, segments):
                for entry in entries:
                    path = _capture_path(entry.path, segments)
                    found.setdefault(
                        (entry.guard.name, (entry.path.text, *path.values())),
                        Covering(guard=entry.guard, host=_capture_host(entry.host, host.name), path=path),
                    )
    return tuple(found.values())


def _capture_host(pattern: HostPattern, name: str) -> Mapping[str, str]:
    if pattern.capture is None:
        return NO_CAPTURES
    return {pattern.capture: name.partition(".")[0]}


def _capture_path(pattern: PathPattern, segments: tuple[str, ...]) -> Mapping[str, str]:
    return {name: segments[at] for at, name in pattern.captures} if pattern.captures else NO_CAPTURES
