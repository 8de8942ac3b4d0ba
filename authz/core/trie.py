"""Path patterns and the trie that finds the one that judges a path, in time that does not grow with the rules.

Among the patterns that match the whole path the first differing segment decides: literal, then ``{name}``, then
``**``. The search goes back where a literal leads nowhere, so a literal hides nothing that it does not answer.
:func:`count_visits` bounds the search; a policy that could need more than MAX_VISITS is refused at load.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

T = TypeVar("T")

MAX_VISITS: Final = 1_024
MAX_PATTERN_SEGMENTS: Final = 64
ANY_SEGMENT: Final = "*"
"""A segment that a request can have and no pattern can name: only ``{name}`` and ``**`` match it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PathPattern:
    """A pattern: ``shape`` has a literal, or None for ``{name}``, for each segment; ``deep``: ``**`` follows.

    ``captures`` are (index of the segment, name).
    """

    text: str
    shape: tuple[str | None, ...]
    captures: tuple[tuple[int, str], ...] = ()
    deep: bool = False

    @property
    def key(self) -> tuple[tuple[str | None, ...], bool]:
        """What makes two patterns match the same paths."""
        return (self.shape, self.deep)

    @property
    def sample(self) -> tuple[str, ...]:
        """The segments of the shortest path that matches and that the fewest other patterns match.

        INVARIANT FEWEST-MATCH: what matches ANY_SEGMENT in a place matches every segment there, and no literal does; so
        a pattern that matches this path matches all paths of ``shape``, and a deep one that does all below them too.
        """
        return tuple([ANY_SEGMENT if part is None else part for part in self.shape])


def parse_path_pattern(text: str) -> PathPattern:
    """Read a pattern as the operator wrote it: ``/orders/{order}``, ``/files/**``, ``/``.

    Raises:
        ValueError: with a message for the operator.

    """
    _check_text(text)
    parts = text[1:].split("/")
    if not parts[-1]:
        parts.pop()
    if len(parts) > MAX_PATTERN_SEGMENTS:
        raise ValueError(f"`{text}` has more than {MAX_PATTERN_SEGMENTS} segments")
    deep = bool(parts) and parts[-1] == "**"
    if deep:
        parts.pop()
    shape: list[str | None] = []
    captures: list[tuple[int, str]] = []
    for at, part in enumerate(parts):
        name = _parse_segment(text, part)
        if name is None:
            shape.append(part)
        else:
            shape.append(None)
            captures.append((at, name))
    names = [name for _, name in captures]
    if len(set(names)) != len(names):
        raise ValueError(f"`{text}` names a capture twice")
    return PathPattern(text=text, shape=tuple(shape), captures=tuple(captures), deep=deep)


def _check_text(text: str) -> None:
    if not text.startswith("/"):
        raise ValueError(f"`{text}` does not start with `/`")
    for mark, what in (("%", "an escape"), ("?", "a query"), ("#", "a fragment"), ("\\", "a backslash")):
        if mark in text:
            raise ValueError(f"`{text}` has {what}: write the path as it reads once decoded, without a query")
    if not text.isprintable():
        raise ValueError(f"`{text!a}` has characters that cannot be seen")


def _parse_segment(text: str, part: str) -> str | None:
    """Return the capture's name, or None for a literal."""
    if part in {"", ".", ".."}:
        raise ValueError(f"`{text}` has an empty or a dot segment: no request with one reaches a rule by it")
    if part == "**":
        raise ValueError(f"`{text}`: `**` stands for the rest of a path, so it must be the last segment")
    if part.startswith("{") and part.endswith("}"):
        if not part[1:-1].isidentifier():
            raise ValueError(f"`{text}`: `{part}` is no capture, write a name such as `{{order}}`")
        return part[1:-1]
    if part == "*":
        raise ValueError(f"`{text}`: `*` is no pattern, write `{{name}}` for one segment or `/**` for all below")
    if any(mark in part for mark in "*{}"):
        raise ValueError(f"`{text}`: `{part}` mixes a literal and a pattern, `{{name}}` and `**` are whole segments")
    return None


@dataclass(slots=True)
class Node(Generic[T]):
    """One position in the trie: built once at load, never changed afterwards."""

    literals: dict[str, Node[T]] = field(default_factory=dict)
    capture: Node[T] | None = None
    exact: T | None = None
    deep: T | None = None

    def reach(self, pattern: PathPattern) -> Node[T]:
        """Return the node where the pattern ends, making what is missing. For building only."""
        node = self
        for part in pattern.shape:
            if part is not None:
                node = node.literals.setdefault(part, Node())
            else:
                if node.capture is None:
                    node.capture = Node()
                node = node.capture
        return node

    def children(self) -> Iterator[Node[T]]:
        """Yield the nodes one segment below."""
        yield from self.literals.values()
        if self.capture is not None:
            yield self.capture


def match_path(node: Node[T], segments: tuple[str, ...]) -> T | None:
    """Return the value of the most specific pattern that matches all segments, or None."""
    at, end = 0, len(segments)
    later: list[tuple[Node[T] | None, int, T | None]] = []
    """Where to go on when a way leads nowhere: by a capture, and then to what takes all the rest."""
    while True:
        if at == end:
            if node.exact is not None:
                return node.exact
            capture = child = None
        else:
            segment = segments[at]
            child = node.literals.get(segment)
            capture = node.capture if segment else None
            at += 1
        if child is not None:
            if capture is not None or node.deep is not None:
                later.append((capture, at, node.deep))
            node = child
            continue
        way: tuple[Node[T] | None, int, T | None] = (capture, at, node.deep)
        while way[0] is None:
            if way[2] is not None:
                return way[2]
            if not later:
                return None
            way = later.pop()
        node, at = way[0], way[1]
        if way[2] is not None:
            later.append((None, at, way[2]))


def match_all_paths(node: Node[T], segments: tuple[str, ...], at: int = 0) -> Iterator[T]:
    """Yield the values of all patterns that match all segments, most specific first."""
    if at == len(segments):
        if node.exact is not None:
            yield node.exact
    else:
        segment = segments[at]
        child = node.literals.get(segment)
        if child is not None:
            yield from match_all_paths(child, segments, at + 1)
        if node.capture is not None and segment:
            yield from match_all_paths(node.capture, segments, at + 1)
    if node.deep is not None:
        yield node.deep


def walk(node: Node[T]) -> Iterator[Node[T]]:
    """Yield this node and every one below it."""
    yield node
    for child in node.children():
        yield from walk(child)


def count_segments(node: Node[T]) -> int:
    """Return how many segments the longest pattern has, ``**`` not counted."""
    return max((1 + count_segments(child) for child in node.children()), default=0)


def sample_below(path: tuple[str, ...], longest: int) -> Iterator[tuple[str, ...]]:
    """Yield paths below a sample, such that whatever matches one of them all matches every path below the sample.

    They go on by ANY_SEGMENT until no pattern of up to ``longest`` segments is as long, and by an empty segment, which
    ``**`` alone matches.
    """
    for count in range(1, longest + 2 - len(path)):
        yield (*path, *[ANY_SEGMENT] * count)
    yield (*path, "")


def count_visits(node: Node[T]) -> int:
    """Return the most nodes that one search can visit below and including this one."""
    literals = max((count_visits(child) for child in node.literals.values()), default=0)
    return 1 + literals + (count_visits(node.capture) if node.capture is not None else 0)
