"""Compile rules and guards into a Policy, and refuse what could be read in two ways.

Refused, each with a problem that names both sides: two rules that could both win; a host pattern that hides another's
rules without saying so; a policy whose search could visit more than MAX_VISITS nodes.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

from authz.core.hosts import HostIndex, HostKind, HostPattern, broader_patterns, index_hosts
from authz.core.policy import Guard, GuardEntry, Methods, Rule, RuleEntry, Table
from authz.core.trie import MAX_VISITS, Node, PathPattern, count_visits
from authz.model import ConfigProblem, PlaceKind

T = TypeVar("T")
Key = tuple[HostKind, str]

_ENOUGH: Final = 5
_EVERYWHERE_KEY: Final[Key] = (HostKind.EVERYWHERE, "")


class Relation(enum.StrEnum):
    """What a host pattern does with the rules of the next broader one."""

    EXTENDS = "extends"
    REPLACES = "replaces"


@dataclass(frozen=True, slots=True)
class _Slot:
    """All rules of one path shape in one table."""

    pattern: PathPattern
    methods: Methods


_Slots = dict[tuple[tuple[str | None, ...], bool], _Slot]


def build_tables(
    rules: Iterable[Rule], relations: Mapping[Key, Relation], lines: Mapping[Key, int], problems: list[ConfigProblem]
) -> HostIndex[Table]:
    """Build the table of each host pattern; add to ``problems`` what stands in the way."""
    own, patterns = _collect(rules, problems)
    everywhere = own.pop(_EVERYWHERE_KEY, {})
    for key in [*relations]:
        if key not in own:
            text = "no rule is for this host itself, so the entry does nothing: remove it"
            problems.append(ConfigProblem(message=text, path=_host_path(key), line=lines.get(key, 0)))
    tables: dict[Key, Table] = {}
    merged: dict[Key, _Slots] = {}
    # Broad patterns first, so that what a narrower one extends is there.
    for key in sorted(own, key=lambda its: (-its[0], its[1].count("."), its[1])):
        next_key = next((its for its in broader_patterns(patterns[key]) if its in own), None)
        relation = relations.get(key)
        extended: _Slots = {}
        if next_key is None and relation is not None:
            text = "no broader host pattern has rules, so there is nothing to extend or replace: remove the entry"
            problems.append(ConfigProblem(message=text, path=_host_path(key), line=lines.get(key, 0)))
        elif next_key is not None and relation is None:
            problems.append(_hides(patterns[key], own[key], patterns[next_key], own[next_key]))
        elif next_key is not None and relation is Relation.EXTENDS:
            extended = merged[next_key]
        slots = _merge(own[key], extended)
        merged[key] = slots
        whole = _compete(slots, everywhere, f"host `{patterns[key]}`", problems)
        tables[key] = _freeze(whole, str(patterns[key]), problems)
    if everywhere:
        tables[_EVERYWHERE_KEY] = _freeze(everywhere, "everywhere", problems)
    return index_hosts(tables)


def _collect(rules: Iterable[Rule], problems: list[ConfigProblem]) -> tuple[dict[Key, _Slots], dict[Key, HostPattern]]:
    own: dict[Key, _Slots] = {}
    patterns: dict[Key, HostPattern] = {}
    for rule in rules:
        for host in rule.hosts:
            known = patterns.setdefault(host.key, host)
            slots = own.setdefault(host.key, {})
            for path in rule.paths:
                _add(slots, RuleEntry(rule, host, path), f"host `{known}`", problems)
    return own, patterns


def build_guards(guards: Iterable[Guard], problems: list[ConfigProblem]) -> HostIndex[Node[tuple[GuardEntry, ...]]]:
    """Build the tries that find every guard of a request."""
    roots: dict[Key, Node[tuple[GuardEntry, ...]]] = {}
    for guard in guards:
        for host in guard.hosts:
            root = roots.setdefault(host.key, Node())
            for path in guard.paths:
                node = root.reach(path)
                entry = GuardEntry(guard, host, path)
                if path.deep:
                    node.deep = (*(node.deep or ()), entry)
                else:
                    node.exact = (*(node.exact or ()), entry)
    for key, root in roots.items():
        _check_visits(root, "guards", _host_path(key), problems)
    return index_hosts(roots)


def _add(slots: _Slots, entry: RuleEntry, where: str, problems: list[ConfigProblem]) -> None:
    slot = slots.setdefault(entry.path.key, _Slot(entry.path, Methods()))
    if entry.rule.methods is None:
        if slot.methods.rest is not None:
            _conflict(slot.methods.rest, entry, "every method", where, problems)
        slot.methods.rest = entry
        return
    for method in sorted(entry.rule.methods):
        if method in slot.methods.named:
            _conflict(slot.methods.named[method], entry, method, where, problems)
        slot.methods.named[method] = entry


def _conflict(first: RuleEntry, second: RuleEntry, method: str, where: str, problems: list[ConfigProblem]) -> None:
    if first.rule is second.rule and first.path is second.path:
        return
    text = (
        f"rules `{first.rule.name}` and `{second.rule.name}` could both judge {method} of `{first.path.text}` on "
        f"{where}: narrow the path, the hosts or the methods of one"
    )
    if first.rule.name == second.rule.name:
        text = f"`{first.path.text}` and `{second.path.text}` are one path on {where}: keep one of them"
    problem = ConfigProblem(message=text, path=f"rules[{second.rule.name}].paths", line=second.rule.line)
    if problem not in problems:
        problems.append(problem)


def _hides(narrow: HostPattern, mine: _Slots, broad: HostPattern, theirs: _Slots) -> ConfigProblem:
    hidden = sorted({entry.rule.name for slot in theirs.values() for entry in slot.methods.entries()})
    names = ", ".join(f"`{name}`" for name in hidden[:_ENOUGH]) + (" and more" if len(hidden) > _ENOUGH else "")
    text = (
        f"the rules for `{narrow}` hide those for `{broad}` ({names}): write "
        f'`"{narrow}": extends` (both compete by path) or `replaces` under `hosts:`'
    )
    line = min(entry.rule.line for slot in mine.values() for entry in slot.methods.entries())
    return ConfigProblem(message=text, path=_host_path(narrow.key), line=line)


def _merge(own: _Slots, broader: _Slots) -> _Slots:
    """Let both compete by path; where path and method are equal, ours comes first."""
    slots = dict(broader)
    for shape, slot in own.items():
        named, rest = dict(slot.methods.named), slot.methods.rest
        theirs = broader.get(shape)
        if theirs is not None and rest is None:
            if "GET" in named:
                named.setdefault("HEAD", named["GET"])
            for method, entry in theirs.methods.named.items():
                named.setdefault(method, entry)
            rest = theirs.methods.rest
        slots[shape] = _Slot(slot.pattern, Methods(named, rest))
    return slots


def _compete(slots: _Slots, everywhere: _Slots, where: str, problems: list[ConfigProblem]) -> _Slots:
    """Add the rules for everywhere, which must not be equal to any other."""
    whole = {
        shape: _Slot(slot.pattern, Methods(dict(slot.methods.named), slot.methods.rest))
        for shape, slot in slots.items()
    }
    for shape, slot in everywhere.items():
        mine = whole.setdefault(shape, _Slot(slot.pattern, Methods())).methods
        for method, entry in slot.methods.named.items():
            if method in mine.named:
                _conflict(mine.named[method], entry, method, where, problems)
            mine.named[method] = entry
        if slot.methods.rest is not None:
            if mine.rest is not None:
                _conflict(mine.rest, slot.methods.rest, "every method", where, problems)
            mine.rest = slot.methods.rest
    return whole


def _freeze(slots: _Slots, name: str, problems: list[ConfigProblem]) -> Table:
    root: Node[Methods] = Node()
    cookies: set[str] = set()
    parameters: set[str] = set()
    for slot in slots.values():
        node = root.reach(slot.pattern)
        if slot.pattern.deep:
            node.deep = slot.methods
        else:
            node.exact = slot.methods
        for entry in slot.methods.entries():
            for place in entry.rule.places:
                if place.kind is PlaceKind.COOKIE:
                    cookies.add(place.name)
                elif place.kind is PlaceKind.QUERY:
                    parameters.add(place.name)
    _check_visits(root, "rules", f"host `{name}`", problems)
    return Table(root=root, cookies=frozenset(cookies), parameters=tuple(sorted(parameters)))


def _check_visits(root: Node[T], part: str, where: str, problems: list[ConfigProblem]) -> None:
    visits = count_visits(root)
    if visits > MAX_VISITS:
        text = (
            f"the {part} of {where} could need {visits} steps for one path, at most {MAX_VISITS} are allowed: use "
            "fewer patterns that mix literals and `{name}` at the same depth"
        )
        problems.append(ConfigProblem(message=text, path=part))


def _host_path(key: Key) -> str:
    kind, name = key
    prefix = {HostKind.EXACT: "", HostKind.LABEL: "{label}.", HostKind.SUFFIX: "*.", HostKind.EVERYWHERE: "everywhere"}
    return f"hosts[{prefix[kind]}{name}]"
