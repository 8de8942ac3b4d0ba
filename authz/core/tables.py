"""Compile rules and guards into a Policy, and refuse what could be read in two ways.

Refused, each with a problem that names both sides: two rules that could both win; a host pattern that hides another's
rules without saying so; a policy whose search could visit more than MAX_VISITS nodes.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

from authz.core.hosts import HostIndex, HostKind, HostPattern, broader_patterns, index_hosts
from authz.core.policy import Access, Guard, GuardEntry, Methods, Policy, Rule, RuleEntry, Table, match_rule
from authz.core.require import needs_principal
from authz.core.trie import MAX_VISITS, Node, PathPattern, count_visits, match_all_paths
from authz.model import ConfigProblem, Host, PlaceKind, Rejected, Target

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
        elif next_key is not None and relation is None and patterns[key].kind is HostKind.EXACT:
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
        _check_visits(root, f"the guards of {_host_path(key)}", problems)
    return index_hosts(roots)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something the operator may not have meant, though it is not wrong."""

    rule: str
    line: int
    text: str


def find_surprises(policy: Policy) -> Iterator[Finding]:
    """Yield the rules that can never let anyone in, and methods that a broader rule would have judged."""
    for rule in policy.rules:
        reached = False
        for host in rule.hosts:
            for path in rule.paths:
                yield from _uncovered(policy, rule, host, path)
                reached = reached or _is_reached(policy, rule, host, path)
        if not reached:
            yield Finding(rule=rule.name, line=rule.line, text="can never be reached: others judge all its paths")
        if rule.access is Access.ANYONE:
            yield from _guarded(policy, rule)
    yield from _hidden(policy)


def sample_host(pattern: HostPattern) -> Host:
    """Return a host that falls under the pattern."""
    if pattern.kind is HostKind.EXACT:
        return Host(name=pattern.name)
    return Host(name="any.example.invalid" if pattern.kind is HostKind.EVERYWHERE else f"any-label.{pattern.name}")


def sample_target(pattern: PathPattern) -> Target:
    """Return a target that the pattern matches."""
    segments = pattern.sample()
    return Target(raw_path="/" + "/".join(segments), segments=segments)


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
    slots: _Slots = {}
    for shape, slot in broader.items():
        ours = own.get(shape)
        if ours is None:
            slots[shape] = slot
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
    _check_visits(root, f"the rules of host `{name}`", problems)
    return Table(root=root, cookies=frozenset(cookies), parameters=tuple(sorted(parameters)))


def _check_visits(root: Node[T], what: str, problems: list[ConfigProblem]) -> None:
    visits = count_visits(root)
    if visits > MAX_VISITS:
        text = (
            f"{what} could need {visits} steps for one path, at most {MAX_VISITS} are allowed: use fewer patterns "
            "that mix literals and `{name}` at the same depth"
        )
        problems.append(ConfigProblem(message=text, path="rules"))


def _host_path(key: Key) -> str:
    kind, name = key
    prefix = {HostKind.EXACT: "", HostKind.LABEL: "{label}.", HostKind.SUFFIX: "*.", HostKind.EVERYWHERE: "everywhere"}
    return f"hosts[{prefix[kind]}{name}]"


def _is_reached(policy: Policy, rule: Rule, host: HostPattern, path: PathPattern) -> bool:
    for method in rule.methods or {"GET", "POST", "X-ANY"}:
        try:
            if match_rule(policy, sample_host(host), sample_target(path), method).rule is rule:
                return True
        except Rejected:
            continue
    return False


def _uncovered(policy: Policy, rule: Rule, host: HostPattern, path: PathPattern) -> Iterator[Finding]:
    """Yield the methods of broader rules that this rule's narrower path takes away from them."""
    tables = policy.tables.match_all(sample_host(host).name)[:1]
    found = [its for table in tables for its in match_all_paths(table.root, path.sample())]
    narrow = found[0] if found else Methods()
    if narrow.rest is not None or not any(entry.rule is rule for entry in narrow.entries()):
        return
    for methods in found[1:]:
        lost = sorted(method for method in methods.named if narrow.match(method) is None)
        if methods.rest is not None:
            lost.append("every other method")
        if lost:
            text = (
                f"`{path.text}` has no rule for {', '.join(lost)}, which a broader rule "
                f"(`{next(methods.entries()).rule.name}`) takes elsewhere: such requests are denied"
            )
            yield Finding(rule=rule.name, line=rule.line, text=text)


def _hidden(policy: Policy) -> Iterator[Finding]:
    """Yield the rules of a broader host pattern that a narrower one takes over without a word under ``hosts``."""
    patterns = {host.key: host for rule in policy.rules for host in rule.hosts if host.kind is not HostKind.EXACT}
    for narrow in patterns.values():
        table = policy.tables.match_first(sample_host(narrow).name)
        judged = {entry.rule.name for methods in _values(table.root) for entry in methods.entries()} if table else set()
        broader = set(broader_patterns(narrow))
        for rule in policy.rules:
            if rule.name not in judged and any(host.key in broader for host in rule.hosts):
                text = f"does not hold on `{narrow}`, which has rules of its own: `extends` under `hosts:` joins them"
                yield Finding(rule=rule.name, line=rule.line, text=text)


def _values(node: Node[T]) -> Iterator[T]:
    for child in (*node.literals.values(), *([node.capture] if node.capture is not None else [])):
        yield from _values(child)
    for value in (node.exact, node.deep):
        if value is not None:
            yield value


def _guarded(policy: Policy, rule: Rule) -> Iterator[Finding]:
    for host in rule.hosts:
        for root in policy.guard_tables.match_all(sample_host(host).name):
            for path in rule.paths:
                for entries in match_all_paths(root, path.sample()):
                    for entry in entries:
                        if needs_principal(entry.guard.tests):
                            text = f"lets anyone in, but guard `{entry.guard.name}` needs a credential: nobody passes"
                            yield Finding(rule=rule.name, line=rule.line, text=f"`{path.text}` {text}")
