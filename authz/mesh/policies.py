"""CUSTOM policies: what each asks about, and what it leaves out.

A policy asks about a request if one of its rules matches: one ``from``, one ``to`` and all of ``when``. Each ``to`` of
a rule is a way of its own. Hosts are compared without case, methods and paths with it; ``*`` is anything at one end.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from authz.config.document import Loc
from authz.mesh.facts import Mesh, Scope, read_scope
from authz.mesh.objects import MeshObject, as_items, as_mapping, as_text, as_texts

OPERATION: Final = ("hosts", "notHosts", "ports", "notPorts", "methods", "notMethods", "paths", "notPaths")

_EVERYTHING: Final[Mapping[str, frozenset[str]]] = {
    "hosts": frozenset({"*"}),
    "methods": frozenset({"*"}),
    "paths": frozenset({"*", "/*"}),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way in which a policy asks: what a request must fit, as far as that leaves anything out.

    ``lists`` are the lists of the operation, ``conditions`` the keys of ``when`` with where they stand; ``sources``
    means that ``from`` narrows it.
    """

    loc: Loc
    lists: Mapping[str, tuple[str, ...]]
    conditions: tuple[tuple[str, Loc], ...]
    sources: bool

    @property
    def narrowed(self) -> frozenset[str]:
        """By what it leaves requests out."""
        more = {"when" for _ in self.conditions} | ({"from"} if self.sources else set())
        return frozenset(self.lists) | more

    def takes_port(self, port: int) -> bool:
        """Say whether its lists of ports leave this one in."""
        wanted = self.lists.get("ports")
        return (wanted is None or str(port) in wanted) and str(port) not in self.lists.get("notPorts", ())

    @property
    def rank(self) -> int:
        """How much of a host it leaves out: nothing (0), some paths named in full (1), or more (2)."""
        if self.narrowed <= {"hosts"}:
            return 0
        spared = self.lists.get("notPaths", ())
        return 1 if self.narrowed <= {"hosts", "notPaths"} and not any("*" in path for path in spared) else 2

    def outdoes(self, other: Way) -> bool:
        """Say whether it leaves less out of every host that the other asks about."""
        if self.rank >= other.rank:
            return not self.narrowed and bool(other.narrowed)
        return "hosts" not in self.lists or (
            "hosts" in other.lists
            and all(
                any(includes_pattern(own, pattern) for own in self.lists["hosts"]) for pattern in other.lists["hosts"]
            )
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CustomPolicy:
    """An AuthorizationPolicy with action CUSTOM."""

    its: MeshObject
    provider: str
    scope: Scope
    ways: tuple[Way, ...]

    def __str__(self) -> str:
        """Render as people name it."""
        return str(self.its)


def find_policies(mesh: Mesh) -> tuple[CustomPolicy, ...]:
    """Return the CUSTOM policies."""
    return tuple(
        CustomPolicy(
            its=its,
            provider=as_text(as_mapping(its.spec.get("provider")).get("name")),
            scope=read_scope(its, mesh),
            ways=tuple(_ways(its.spec)),
        )
        for its in mesh.of("AuthorizationPolicy")
        if its.spec.get("action") == "CUSTOM"
    )


def _ways(spec: Mapping[str, Any]) -> Iterator[Way]:
    for number, item in enumerate(as_items(spec.get("rules"))):
        if not isinstance(item, dict):
            continue
        rule, loc = as_mapping(item), ("spec", "rules", number)
        whens = [as_mapping(when) for when in as_items(rule.get("when"))]
        conditions = tuple((as_text(when.get("key")), (*loc, "when", at)) for at, when in enumerate(whens))
        sources = bool(as_items(rule.get("from")))
        operations = as_items(rule.get("to"))
        for at, to in enumerate(operations):
            place = (*loc, "to", at, "operation")
            lists = _lists(as_mapping(as_mapping(to).get("operation")))
            yield Way(loc=place, lists=lists, conditions=conditions, sources=sources)
        if not operations:
            yield Way(loc=loc, lists={}, conditions=conditions, sources=sources)


def _lists(operation: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Return the lists of an operation that leave something out."""
    found = {name: as_texts(operation.get(name)) for name in OPERATION}
    return {
        name: values
        for name, values in found.items()
        if values and not _EVERYTHING.get(name, frozenset()).intersection(values)
    }


def matches_host(pattern: str, host: str) -> bool:
    """Say whether Istio takes a Host header, with its port if it has one, for one of the pattern's."""
    wanted, given = pattern.lower(), host.lower()
    if wanted == "*":
        return bool(given)
    if wanted.startswith("*"):
        return given.endswith(wanted[1:])
    if wanted.endswith("*"):
        return given.startswith(wanted[:-1])
    return given == wanted


def includes_pattern(outer: str, inner: str) -> bool:
    """Say whether every host of the inner pattern surely is one of the outer's."""
    if outer == "*" or outer.lower() == inner.lower():
        return True
    if inner.startswith("*"):
        return outer.startswith("*") and inner.lower().endswith(outer[1:].lower())
    if inner.endswith("*"):
        return not outer.startswith("*") and outer.endswith("*") and inner[:-1].lower().startswith(outer[:-1].lower())
    return matches_host(outer, inner)


def asks_about_any(policies: Iterable[CustomPolicy], host: str) -> bool:
    """Say whether some policy asks about some request with this Host header."""
    return any(
        "hosts" not in way.lists or any(matches_host(pattern, host) for pattern in way.lists["hosts"])
        for policy in policies
        for way in policy.ways
        if not any(matches_host(pattern, host) for pattern in way.lists.get("notHosts", ()))
    )
