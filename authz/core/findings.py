"""What an operator may not have meant, though it is not wrong: for ``authz validate``.

Nothing is tried out on examples, which can lie. Labels and segments are without number and patterns are not, so a host
pattern keeps hosts that no narrower one takes, and by invariant FEWEST-MATCH a path pattern's sample, for ``**`` with
those below it, stands for all of its paths.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from authz.core.hosts import EVERYWHERE, HostKind, HostPattern, broader_patterns
from authz.core.path import parse_host_name
from authz.core.policy import Access, GuardEntry, Methods, Policy, Rule, RuleEntry, Table
from authz.core.require import needs_principal
from authz.core.trie import Node, match_all_paths, sample_below, walk
from authz.core.uncovered import ENOUGH, Uncovered, find_uncovered, refusal_of
from authz.model import Ambiguity, Rejected

Key = tuple[HostKind, str]
Segments = tuple[str, ...]
GuardNode = Node[tuple[GuardEntry, ...]]

_OTHER_HOSTS: Final = "hosts without rules of their own"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something the operator may not have meant, though it is not wrong."""

    rule: str
    line: int
    text: str


@dataclass(frozen=True, slots=True)
class _Note:
    """A finding without its hosts, which stand between the two halves of its text."""

    rule: str
    line: int
    before: str
    after: str


def find_surprises(policy: Policy) -> list[Finding]:
    """Return by line: what is never reached or never passed, what a narrower host hides and a narrower path takes."""
    hosts: dict[_Note, dict[str, None]] = {}
    for note, host in _notes(policy):
        hosts.setdefault(note, {})[host] = None
    found = [
        Finding(rule=note.rule, line=note.line, text=f"{note.before} on {_some(names)}{note.after}")
        for note, names in hosts.items()
    ]
    return sorted(found, key=lambda its: its.line)


def _notes(policy: Policy) -> Iterator[tuple[_Note, str]]:
    patterns = {host.key: host for rule in policy.rules for host in rule.hosts}
    named = {(rule.name, host.key) for rule in policy.rules for host in rule.hosts}
    guards = dict(policy.guard_tables.items())
    rule_paths = (path for rule in policy.rules for path in rule.paths)
    guard_paths = (path for guard in policy.guards for path in guard.paths)
    longest = max(len(path.shape) for path in (*rule_paths, *guard_paths))
    for key, table in policy.tables.items():
        for node, methods, entry in _entries(table):
            if (entry.rule.name, key) in named:
                note = _unreached(entry, node, patterns[key])
                if note is None and entry.rule.access is Access.ANYONE:
                    roots = [guards[its] for its in _covering(patterns[key]) if its in guards]
                    note = _unpassable(entry, roots, _judged(table, methods, entry, longest))
                if note is not None:
                    yield note, f"`{patterns[key]}`"
        for uncovered in find_uncovered(table):
            yield _denied(uncovered), _OTHER_HOSTS if key == EVERYWHERE.key else f"`{patterns[key]}`"
    yield from _hidden(policy, patterns)


def _entries(table: Table) -> Iterator[tuple[Node[Methods], Methods, RuleEntry]]:
    for node in walk(table.root):
        for methods in (node.exact, node.deep):
            if methods is not None:
                yield from ((node, methods, entry) for entry in methods.entries())


def _unreached(entry: RuleEntry, node: Node[Methods], host: HostPattern) -> _Note | None:
    """Say why no request reaches an entry by a host that its rule names.

    The table of that host tells all: others that take the entry from it have the same path patterns, and more.
    """
    why = _refused(entry, host) or _shadowed(entry, node)
    before = f"`{entry.path.text}` can never be reached"
    return _Note(entry.rule.name, entry.rule.line, before, f": {why}") if why else None


def _refused(entry: RuleEntry, host: HostPattern) -> str:
    reason = refusal_of(entry.rule, entry.path.sample)
    if host.kind in (HostKind.LABEL, HostKind.SUFFIX):
        try:
            parse_host_name(f"a.{host.name}")
        except Rejected as refusal:
            reason = refusal.reason
    return f"such requests are refused, as `{reason}`" if reason is not None else ""


def _shadowed(entry: RuleEntry, node: Node[Methods]) -> str:
    """Say which patterns judge all paths of an entry: only one that ends in ``**`` can be taken from all its paths.

    It takes one that ends where the ``**`` begins, one with a capture there, one with two, and so on to another ``**``.
    """
    if not entry.path.deep or Ambiguity.EMPTY_SEGMENT in entry.rule.accept:
        return ""
    others: list[Methods] = []
    here: Node[Methods] | None = node
    while here is not None and here.exact is not None:
        others.append(here.exact)
        here = here.capture
        if here is not None and here.deep is not None:
            names = _some(f"`{next(its.entries()).path.text}`" for its in (*others, here.deep))
            return f"{names} judge all its paths"
    return ""


def _judged(table: Table, methods: Methods, entry: RuleEntry, longest: int) -> Iterator[Segments]:
    """Yield samples of the paths that an entry judges."""
    sample = entry.path.sample
    for path in (sample, *(sample_below(sample, longest) if entry.path.deep else ())):
        if next(match_all_paths(table.root, path)) is methods and refusal_of(entry.rule, path) is None:
            yield path


def _unpassable(entry: RuleEntry, roots: list[GuardNode], paths: Iterable[Segments]) -> _Note | None:
    """Say which guards let nobody pass whom a rule for anyone lets in, whichever of its paths is asked for."""
    closed: dict[str, None] = {}
    for path in paths:
        covering = [its.guard for root in roots for entries in match_all_paths(root, path) for its in entries]
        names = [f"`{guard.name}`" for guard in covering if needs_principal(guard.tests)]
        if not names:
            return None
        closed |= dict.fromkeys(names)
    who = f"guard {_some(closed)} needs" if len(closed) == 1 else f"guards {_some(closed)} need"
    before = f"`{entry.path.text}` lets anyone in"
    return _Note(entry.rule.name, entry.rule.line, before, f", but {who} a credential: nobody passes")


def _covering(host: HostPattern) -> Iterable[Key]:
    """Return the keys of all patterns that cover every host of this one: itself and what is broader."""
    return dict.fromkeys([host.key, *broader_patterns(host), EVERYWHERE.key])


def _denied(uncovered: Uncovered) -> _Note:
    narrow, broad = uncovered.narrow, uncovered.broad
    before = f"`{narrow.path.text}` has no rule for {', '.join(uncovered.methods)}"
    after = f", which a broader rule (`{broad.rule.name}`) takes for `{broad.path.text}`: such requests are denied"
    return _Note(narrow.rule.name, narrow.rule.line, before, after)


def _hidden(policy: Policy, patterns: Mapping[Key, HostPattern]) -> Iterator[tuple[_Note, str]]:
    """Yield the rules of a broader host pattern that do not hold under a narrower one; exact names had to say so."""
    rules: dict[Key, dict[str, Rule]] = {}
    for rule in policy.rules:
        for host in rule.hosts:
            rules.setdefault(host.key, {})[rule.name] = rule
    for key, table in policy.tables.items():
        if key[0] is HostKind.EXACT:
            continue
        broader = [rule for its in broader_patterns(patterns[key]) for rule in rules.get(its, {}).values()]
        judging = {entry.rule.name for _, _, entry in _entries(table)} if broader else set()
        for rule in broader:
            if rule.name not in judging:
                after = ", whose own rules come first: `extends` under `hosts:` lets both compete by path"
                yield _Note(rule.name, rule.line, "does not hold", after), f"`{patterns[key]}`"


def _some(names: Iterable[str]) -> str:
    every = list(names)
    more = len(every) - ENOUGH
    return ", ".join(every) if more <= 0 else f"{', '.join(every[:ENOUGH])} and {more} more"
