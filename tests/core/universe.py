"""Small random policies, and requests of every kind that such a policy can tell apart.

Patterns name the labels ``a b`` and the segments ``x`` and ``y;`` only, and three of them at most; requests also have a
label and a segment that no pattern names, an empty segment, a method without a rule, and one label or segment more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Final

from hypothesis import strategies as st

from authz.core.hosts import HostKind, HostPattern, broader_patterns, parse_host_pattern
from authz.core.path import parse_target
from authz.core.policy import Access, Guard, Policy, Rule, Table
from authz.core.require import RoleTest
from authz.core.tables import Relation, build_guards, build_tables
from authz.core.trie import PathPattern, parse_path_pattern
from authz.model import Ambiguity, ConfigProblem, Host, Role, Target

MAX_RULES: Final = 6
METHODS: Final = ("GET", "HEAD", "POST", "PUT")
HOSTS: Final = (
    Host(name="z"),
    *(Host(name=".".join((*labels, "example"))) for count in range(4) for labels in product("abz", repeat=count)),
)
TARGETS: Final = tuple(
    parse_target("/" + "".join(f"{segment}/" for segment in segments), method="GET")
    for count in range(5)
    for segments in product(("x", "y;", "z", ""), repeat=count)
)
HOST_PATTERNS: Final = tuple(
    parse_host_pattern(text)
    for text in (
        *("everywhere", "*.example", "{t}.example", "*.a.example", "{t}.a.example", "example", "a.example"),
        *("b.example", "a.a.example", "b.a.example"),
    )
)
SEGMENT = st.sampled_from(["{}", "{}", "x", "y;"])
ACCEPTED = st.frozensets(st.sampled_from([Ambiguity.EMPTY_SEGMENT, Ambiguity.SEMICOLON]))


@st.composite
def path_patterns(draw: st.DrawFn) -> tuple[PathPattern, ...]:
    """Draw one pattern for all below some path, those that could take it all, and one or two more."""
    start = draw(st.lists(SEGMENT, max_size=2))
    texts = [[*start, *more] for more in ((), ("{}",), ("**",), ("{}", "**"), ("{}", "{}", "**"))]
    texts += draw(st.lists(st.lists(SEGMENT, max_size=3), min_size=1, max_size=2))
    texts.append([*draw(st.lists(SEGMENT, max_size=1)), "**"])
    return tuple(
        parse_path_pattern("/" + "/".join(part.format(f"{{c{at}}}") for at, part in enumerate(text))) for text in texts
    )


@st.composite
def policies(draw: st.DrawFn, *, guarded: bool = False) -> Policy:
    """Draw rules one by one, and leave out what conflicts with those before it."""
    hosts = draw(st.lists(st.sampled_from(HOST_PATTERNS), min_size=1, max_size=3, unique=True))
    relations = {host.key: draw(st.sampled_from(Relation)) for host in hosts}
    patterns = st.lists(st.sampled_from(hosts), min_size=1, max_size=2, unique=True).map(tuple)
    shapes = draw(path_patterns().flatmap(st.permutations))
    paths = st.sampled_from(shapes)
    rules: list[Rule] = []
    for at in range(draw(st.integers(1, MAX_RULES))):
        rule = Rule(
            name=f"r{len(rules)}",
            line=len(rules),
            hosts=draw(patterns),
            paths=(draw(st.just(shapes[at]) | paths),),
            access=Access.ANYONE,
            methods=draw(st.sampled_from([None, frozenset({"GET"}), frozenset({"POST"}), frozenset({"GET", "HEAD"})])),
            accept=frozenset() if guarded else draw(ACCEPTED),
        )
        if not _problems([*rules, rule], relations):
            rules.append(rule)
    guards: list[Guard] = []
    for _ in range(draw(st.integers(1, 4)) if guarded else 0):
        tests = draw(st.sampled_from([(), (RoleTest(roles=frozenset({Role("r")})),)]))
        where = (draw(st.sampled_from(HOST_PATTERNS[:6])),)
        guards.append(Guard(name=f"g{len(guards)}", hosts=where, paths=(draw(paths),), tests=tests))
    return Policy(
        rules=tuple(rules),
        guards=tuple(guards),
        tables=build_tables(rules, _stated(rules, relations), {}, []),
        guard_tables=build_guards(guards, []),
    )


def _problems(rules: list[Rule], relations: Mapping[tuple[HostKind, str], Relation]) -> list[ConfigProblem]:
    problems: list[ConfigProblem] = []
    build_tables(rules, _stated(rules, relations), {}, problems)
    return problems


def _stated(
    rules: list[Rule], relations: Mapping[tuple[HostKind, str], Relation]
) -> Mapping[tuple[HostKind, str], Relation]:
    """Leave out the relations of hosts that have nothing broader to extend or replace."""
    used = {host.key: host for rule in rules for host in rule.hosts}
    return {key: relations[key] for key, host in used.items() if set(broader_patterns(host)) & used.keys()}


def tables_of(policy: Policy) -> Iterator[tuple[HostPattern, Table, list[Host]]]:
    """Yield each host pattern with its table and the hosts that it judges."""
    for pattern in dict.fromkeys(host for rule in policy.rules for host in rule.hosts):
        table = dict(policy.tables.items())[pattern.key]
        yield pattern, table, [host for host in HOSTS if policy.tables.match_first(host.name) is table]


def requests_of(hosts: list[Host]) -> Iterator[tuple[Host, Target, str]]:
    """Yield requests to one of these hosts, of which one table judges all."""
    if hosts:
        yield from product(hosts[:1], TARGETS, METHODS)
