"""What the operator may not have meant is told, and nothing that is not so."""

from __future__ import annotations

import re
from itertools import product

import pytest
from hypothesis import given, settings

from authz.core.findings import find_surprises
from authz.core.path import MAX_TARGET_CHARS, check_accepted
from authz.core.policy import Policy, match_guards, match_rule
from authz.core.require import needs_principal
from authz.core.trie import match_path
from authz.model import Rejected
from tests.core.build import policy_of, rule
from tests.core.universe import METHODS, TARGETS, policies, requests_of, tables_of

GET = "methods: [GET], allow: anyone"
PUT = "methods: [PUT], allow: anyone"
EMPTY = "accept: [empty_segment], allow: anyone"


def findings(*rules: str, before: str = "", after: str = "") -> list[str]:
    policy = policy_of(f"{before}rules:\n{''.join(rules)}{after}")
    return [f"{its.rule}: {its.text}" for its in find_surprises(policy)]


def test_a_method_that_a_narrower_path_takes_is_told_with_its_hosts() -> None:
    (told,) = findings(rule("narrow", "[a.example]", "/x", GET), rule("broad", "[a.example]", "/**"))
    what = "narrow: `/x` has no rule for any other method on `a.example`"
    assert told == f"{what}, which a broader rule (`broad`) takes for `/**`: such requests are denied"


def test_a_path_is_told_once_by_its_first_rule() -> None:
    rules = (
        rule("one", "[a.example]", "/x", GET),
        rule("two", "[a.example]", "/x", PUT),
        rule("all", "everywhere", "/**"),
    )
    assert [its.partition(":")[0] for its in findings(*rules)] == ["one"]


def test_a_rule_for_everywhere_takes_methods_on_each_host_with_broader_rules() -> None:
    told = findings(
        rule("narrow", "everywhere", "/x", GET),
        rule("broad", "[h.example]", "/**"),
        rule("some", "[f.example]", "/x/**", "methods: [PUT, POST], allow: anyone"),
        rule("get", "[g.example]", "/**", GET),
    )
    assert {its.partition(", which")[0] for its in told} == {
        "narrow: `/x` has no rule for any other method on `h.example`",
        "narrow: `/x` has no rule for POST, PUT on `f.example`",
    }
    unknown = findings(rule("narrow", "everywhere", "/x", GET), rule("broad", "everywhere", "/**", PUT))
    assert unknown[0].startswith("narrow: `/x` has no rule for PUT on hosts without rules of their own, which")


@pytest.mark.parametrize(
    ("count", "hosts"),
    [
        (5, "`h0.example`, `h1.example`, `h2.example`, `h3.example`, `h4.example`, which"),
        (6, "`h0.example`, `h1.example`, `h2.example`, `h3.example`, `h4.example` and 1 more, which"),
    ],
)
def test_five_hosts_are_named_and_the_others_counted(count: int, hosts: str) -> None:
    names = "[" + ", ".join(f"h{n}.example" for n in range(count)) + "]"
    (told,) = findings(rule("narrow", names, "/x", GET), rule("broad", names, "/**", PUT))
    assert f" on {hosts}" in told


def test_what_others_judge_on_some_paths_or_hosts_only_is_reached() -> None:
    assert findings(rule("a", "[a.example]", "/{a}", GET), rule("b", "[a.example]", "/**", GET)) == []
    assert findings(rule("a", "[a.example]", "/x/{a}/**"), rule("b", "[a.example]", "/x/**")) == []
    assert findings(rule("a", "[a.example]", "/x"), rule("b", "[a.example]", "/x/**")) == []
    told = findings(
        rule("one", "['*.example']", "/x"),
        rule("two", "['{t}.example']", "/x"),
        after="hosts: {'{t}.example': replaces}\n",
    )
    assert not [its for its in told if "reached" in its]


@pytest.mark.parametrize(
    ("others", "by"),
    [
        (("/x", "/x/{a}/**"), "`/x`, `/x/{a}/**`"),
        (("/x", "/x/{a}", "/x/{a}/{b}/**"), "`/x`, `/x/{a}`, `/x/{a}/{b}/**`"),
        (("/x", "/x/{a}", "/x/{a}/**"), "`/x`, `/x/{a}/**`"),
    ],
)
def test_a_rule_that_others_leave_no_path_is_told(others: tuple[str, ...], by: str) -> None:
    rules = [rule(f"'{path}'", "everywhere", path) for path in others]
    assert findings(*rules, rule("never", "everywhere", "/x/**")) == [
        f"never: `/x/**` can never be reached on `everywhere`: {by} judge all its paths"
    ]
    for missing in range(len(rules)):
        told = findings(*rules[:missing], *rules[missing + 1 :], rule("never", "everywhere", "/x/**"))
        assert told == [] or (others[missing], by) == ("/x/{a}", "`/x`, `/x/{a}/**`")
    assert findings(*rules, rule("empty", "everywhere", "/x/**", EMPTY)) == []


@pytest.mark.parametrize(
    ("host", "path", "rest", "reason"),
    [
        ("'*.192.0.2.1'", "/x", "allow: anyone", "bad_host"),
        ("'{t}.192.0.2.1'", "/x", "allow: anyone", "bad_host"),
        ("192.0.2.1", "/x", "allow: anyone", None),
        (f"'*.{'.'.join(['a' * 62] * 4)}'", "/x", "allow: anyone", None),
        (f"'*.{'.'.join(['a' * 62] * 4)}a'", "/x", "allow: anyone", "bad_host"),
        ("a.example", "/x;y/**", "allow: anyone", "path_semicolon"),
        ("a.example", "/x;y/**", "allow: anyone, accept: [semicolon]", None),
        ("a.example", "/..;", "allow: anyone, accept: [semicolon]", "path_dot_segment"),
        ("a.example", "/a b/caf\u00e9", "allow: anyone", None),
        pytest.param("a.example", "/" + "+" * (MAX_TARGET_CHARS // 2), "allow: anyone", None, id="long"),
        pytest.param("a.example", "/" + "+" * MAX_TARGET_CHARS, "allow: anyone", "path_too_long", id="longer"),
    ],
)
def test_a_rule_whose_requests_are_refused_before_it_is_told(
    host: str, path: str, rest: str, reason: str | None
) -> None:
    told = findings(rule("r", f"[{host}]", path, rest))
    if reason is None:
        assert told == []
        return
    assert told == [
        f"r: `{path}` can never be reached on `{host.strip(chr(39))}`: such requests are refused, as `{reason}`"
    ]


def test_rules_that_a_narrower_host_pattern_hides_are_told() -> None:
    rules = (
        rule("broad", "['*.example']", "/x"),
        rule("own", "['{t}.example']", "/x"),
        rule("deep", "['*.b.example']", "/x"),
        rule("exact", "[a.b.example]", "/x"),
    )
    hosts = "hosts: {a.b.example: replaces, '*.b.example': replaces, '{t}.example': replaces}\n"
    how = "whose own rules come first: `extends` under `hosts:` lets both compete by path"
    assert findings(*rules, after=hosts) == [f"broad: does not hold on `*.b.example`, `{{t}}.example`, {how}"]
    extended = hosts.replace(
        "'*.b.example': replaces, '{t}.example': replaces", "'*.b.example': extends, '{t}.example': extends"
    )
    assert findings(*(its.replace("/x", "/y") if "deep" in its else its for its in rules), after=extended) == [
        f"broad: does not hold on `{{t}}.example`, {how}"
    ]


GUARDS = """
guards:
  - {name: g, hosts: everywhere, paths: ['/x/**'], require: {roles: admin}}
  - {name: h, hosts: ['*.example'], paths: ['/y', '/y/{a}'], require: {roles: admin}}
  - {name: i, hosts: ['{t}.example'], paths: ['/y/{a}/{b}/**'], require: {roles: admin}}
  - {name: n, hosts: everywhere, paths: ['/**'], require: {networks: 10.0.0.0/8}}
"""


@pytest.mark.parametrize(
    ("host", "path", "who"),
    [
        ("a.example", "/x", "guard `g` needs"),
        ("a.example", "/x/{a}/**", "guard `g` needs"),
        ("a.example", "/{a}", None),
        ("a.example", "/z", None),
        ("a.example", "/y/**", "guards `h`, `i` need"),
        ("{t}.example", "/y/**", "guards `h`, `i` need"),
        ("*.example", "/y/**", None),
        ("*.example", "/y/{a}", "guard `h` needs"),
        ("*.b.example", "/y/{a}", "guard `h` needs"),
        ("*.org", "/y/{a}", None),
    ],
)
def test_a_rule_for_anyone_whom_guards_stop_is_told(host: str, path: str, who: str | None) -> None:
    told = findings(rule("open", f"['{host}']", path), before=GUARDS)
    expected = f"open: `{path}` lets anyone in on `{host}`, but {who} a credential: nobody passes"
    assert told == ([expected] if who else [])
    assert findings(rule("open", f"['{host}']", path, "allow: nobody"), before=GUARDS) == []


def test_only_the_paths_that_a_rule_judges_count_for_its_guards() -> None:
    rules = (rule("wide", "[a.example]", "/z/**"), rule("one", "[a.example]", "/z", "allow: nobody"))
    guard = "guards:\n  - {name: g, hosts: everywhere, paths: ['/z/{a}/**'], require: {roles: admin}}\n"
    assert [its.partition(":")[0] for its in findings(*rules, before=guard)] == ["wide"]
    assert findings(rules[0], before=guard) == []
    assert findings(rule("wide", "[a.example]", "/z/**", EMPTY), rules[1], before=guard) == []


def test_findings_come_by_line() -> None:
    policy = policy_of(
        "rules:\n"
        + rule("second", "[b.example]", "/x", GET)
        + rule("first", "everywhere", "/{a}", GET)
        + rule("all", "everywhere", "/**", PUT)
    )
    lines = [its.line for its in find_surprises(policy)]
    assert lines == sorted(lines) == [7, 8]


Entry = tuple[str, str, str]
PLAIN = [target for target in TARGETS if not target.ambiguities]


def reached(policy: Policy) -> set[Entry]:
    """Return (rule, path, host pattern) of what judges some requests, and does not refuse them as ambiguous."""
    found = set()
    for pattern, table, hosts in tables_of(policy):
        for host, target, method in requests_of(hosts):
            try:
                match = match_rule(policy, host, target, method)
                check_accepted(target, match.rule.accept)
            except Rejected:
                continue
            methods = match_path(table.root, target.segments)
            entry = methods.match(method) if methods is not None else None
            assert entry is not None
            assert entry.rule is match.rule
            found |= {(entry.rule.name, entry.path.text, str(host)) for host in (entry.host, pattern)}
    return found


def told(policy: Policy, before: str, after: str) -> set[Entry]:
    """Return (rule, path, host pattern) of the findings with these words."""
    found = set()
    for finding in find_surprises(policy):
        match = re.fullmatch(f"`(.*?)` {before} on (.*?){after}.*", finding.text)
        if match is not None:
            found |= {(finding.rule, match[1], host) for host in re.findall("`(.*?)`", match[2])}
    return found


@settings(max_examples=150, deadline=None)
@given(policies())
def test_exactly_what_no_request_reaches_is_told(policy: Policy) -> None:
    entries = {(its.name, path.text, str(host)) for its in policy.rules for path in its.paths for host in its.hosts}
    assert told(policy, "can never be reached", ": ") == entries - reached(policy)


@settings(max_examples=100, deadline=None)
@given(policies(guarded=True))
def test_exactly_whom_guards_stop_on_every_path_is_told(policy: Policy) -> None:
    """Guards without a test stand for those that do not ask for a credential."""
    passing: dict[Entry, set[bool]] = {}
    for pattern, table, hosts in tables_of(policy):
        for host, target, method in product(hosts, PLAIN, METHODS):
            try:
                match = match_rule(policy, host, target, method)
                check_accepted(target, match.rule.accept)
            except Rejected:
                continue
            methods = match_path(table.root, target.segments)
            entry = methods.match(method) if methods is not None else None
            assert entry is not None
            if pattern in match.rule.hosts:
                covering = match_guards(policy, host, target)
                passes = not any(needs_principal(its.guard.tests) for its in covering)
                passing.setdefault((match.rule.name, entry.path.text, str(pattern)), set()).add(passes)
    stopped = {entry for entry, passes in passing.items() if passes == {False}}
    assert told(policy, "lets anyone in", ", but") == stopped
