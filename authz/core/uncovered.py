"""Methods that a narrower path pattern takes from a broader one: it has no rule for them, and so they are denied.

Nothing is tried out on examples. By invariant FEWEST-MATCH the narrower of two patterns judges some of their common
paths if it judges the sample of these, and what comes next there comes next on all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from authz.core.path import check_accepted, parse_target
from authz.core.policy import Methods, Rule, RuleEntry, Table
from authz.core.trie import ANY_SEGMENT, Node, PathPattern, count_segments, match_all_paths, sample_below, walk
from authz.model import Reason, Rejected

Segments = tuple[str, ...]
MethodsBelow = Mapping[int, frozenset[str]]

ENOUGH: Final = 5
"""So many rules are named for one pattern; more only for methods that those do not have."""

REST: Final = "any other method"
"""Stands among the names of methods for those that nobody names; no method has blanks."""

_NEEDS_NO_ESCAPE: Final = "!$&'()*+,;=:@"


@dataclass(frozen=True, slots=True, kw_only=True)
class Uncovered:
    """Methods without a rule on the path of ``narrow``, which ``broad`` would judge if that path were not there."""

    narrow: RuleEntry
    broad: RuleEntry
    methods: tuple[str, ...]


def find_uncovered(table: Table) -> Iterator[Uncovered]:
    """Yield every method that each pattern takes from a broader one, with ENOUGH of the rules it is taken from."""
    below: dict[int, frozenset[str]] = {}
    known = _collect_methods(table.root, below)
    longest = count_segments(table.root)
    for node in walk(table.root):
        for methods in (node.exact, node.deep):
            if methods is not None and methods.rest is None:
                wanted = {method for method in known if methods.match(method) is None}
                narrow = _Narrow(methods, next(methods.entries()).path, below)
                yield from _find(table.root, narrow, wanted, longest)


def refusal_of(rule: Rule, path: Segments) -> Reason | None:
    """Return why requests with these segments are refused, whatever the rule requires, or None if they are not."""
    try:
        raw = "/" + "".join(f"{quote(segment, safe=_NEEDS_NO_ESCAPE)}/" for segment in path)
        check_accepted(parse_target(raw, method="GET"), rule.accept)
    except Rejected as refusal:
        return refusal.reason
    return None


@dataclass(frozen=True, slots=True)
class _Narrow:
    """A pattern that has no rule for some methods; ``below`` tells by node which methods have one there or below."""

    methods: Methods
    pattern: PathPattern
    below: MethodsBelow


def _collect_methods(node: Node[Methods], below: dict[int, frozenset[str]]) -> frozenset[str]:
    found = _methods(node.exact) | _methods(node.deep)
    for child in node.children():
        found |= _collect_methods(child, below)
    below[id(node)] = found
    return found


def _methods(methods: Methods | None) -> frozenset[str]:
    if methods is None:
        return frozenset()
    return frozenset([*methods.named, *([REST] if methods.rest is not None else [])])


def _find(root: Node[Methods], narrow: _Narrow, wanted: set[str], longest: int) -> Iterator[Uncovered]:
    """Yield what one pattern takes. ``wanted`` shrinks once ENOUGH rules are found, and the search with it."""
    found: dict[tuple[str, str], tuple[RuleEntry, set[str]]] = {}
    seen: set[Segments] = set()
    for sample, deep in _meet(root, narrow, wanted):
        for path in (sample, *(sample_below(sample, longest) if deep else ())):
            if path in seen:
                continue
            seen.add(path)
            first, *broader = match_all_paths(root, path)
            if first is not narrow.methods:
                continue
            for method, entry in _judges(broader, wanted):
                if refusal_of(entry.rule, path) is None:
                    found.setdefault((entry.rule.name, entry.path.text), (entry, set()))[1].add(method)
        if len(found) >= ENOUGH:
            wanted.difference_update(*(methods for _, methods in found.values()))
    mine = min(narrow.methods.entries(), key=lambda its: its.rule.line)
    for entry, methods in found.values():
        yield Uncovered(narrow=mine, broad=entry, methods=tuple(sorted(methods)))


def _judges(broader: list[Methods], wanted: set[str]) -> Iterator[tuple[str, RuleEntry]]:
    """Yield each wanted method, REST for one that is not named, with the first entry that would judge it."""
    for method in sorted(wanted):
        entry = next((entry for its in broader if (entry := its.match(method)) is not None), None)
        if entry is not None:
            yield (method if entry.rule.methods is not None else REST), entry


def _meet(
    node: Node[Methods], narrow: _Narrow, wanted: set[str], path: Segments = (), *, broader: bool = False
) -> Iterator[tuple[Segments, bool]]:
    """Yield the sample of the paths that the pattern has in common with each broader one, and whether both go below.

    ``path`` leads to the node; ``broader`` tells that it has left the pattern's own, by a capture beside a literal:
    before that only ``**`` is broader than the pattern, and after it all is.
    """
    at, shape, deep = len(path), narrow.pattern.shape, narrow.pattern.deep
    if node.deep is not None and node.deep is not narrow.methods:
        yield (*path, *narrow.pattern.sample[at:]), deep
    if broader and node.exact is not None and at >= len(shape):
        yield path, False
    if at >= len(shape) and not (deep and broader):
        return
    part = shape[at] if at < len(shape) else None
    if part is not None:
        literals = {part: node.literals[part]} if part in node.literals else {}
    else:
        literals = node.literals if broader else {}
    for literal, child in literals.items():
        if not wanted:
            return
        if not wanted.isdisjoint(narrow.below[id(child)]):
            yield from _meet(child, narrow, wanted, (*path, literal), broader=broader)
    if node.capture is not None and not wanted.isdisjoint(narrow.below[id(node.capture)]):
        aside = broader or part is not None
        yield from _meet(node.capture, narrow, wanted, (*path, part or ANY_SEGMENT), broader=aside)
