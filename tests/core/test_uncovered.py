"""Methods that a narrower path takes from a broader one are told, each with the rule that would judge it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from authz.core.path import check_accepted
from authz.core.policy import Policy, match_rule
from authz.core.trie import match_all_paths
from authz.core.uncovered import ENOUGH, REST, find_uncovered
from authz.model import Reason, Rejected
from tests.core.build import policy_of, rule
from tests.core.universe import policies, requests_of, tables_of

Told = tuple[str, str, str, str]


def uncovered(*rules: str) -> list[Told]:
    """Return (narrow path, method, broad rule, broad path) for one host."""
    table = policy_of("rules:\n" + "".join(rules)).tables.match_first("a.example")
    assert table is not None
    return [
        (its.narrow.path.text, ", ".join(its.methods), its.broad.rule.name, its.broad.path.text)
        for its in find_uncovered(table)
    ]


def line(path: str, methods: str = "", hosts: str = "[a.example]", name: str = "") -> str:
    return rule(
        name or f"'{f'{path} {methods}'.strip()}'",
        hosts,
        path,
        (f"methods: [{methods}], " if methods else "") + "allow: anyone",
    )


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ((line("/x", "GET"), line("/**")), [("/x", REST, "/**", "/**")]),
        ((line("/{a}", "GET"), line("/**", "PUT")), [("/{a}", "PUT", "/** PUT", "/**")]),
        ((line("/x", "GET"), line("/**", "GET")), []),
        ((line("/x", "GET"), line("/**", "HEAD")), []),
        ((line("/x", "HEAD"), line("/**", "GET")), [("/x", "GET", "/** GET", "/**")]),
        ((line("/x", "GET"), line("/x"), line("/**")), []),
        ((line("/x"), line("/**", "GET")), []),
        # Who comes first among the broader ones would judge.
        (
            (line("/x", "GET"), line("/{a}", "PUT"), line("/**", "PUT, POST")),
            [
                ("/x", "PUT", "/{a} PUT", "/{a}"),
                ("/x", "POST", "/** PUT, POST", "/**"),
                ("/{a}", "POST", "/** PUT, POST", "/**"),
            ],
        ),
        ((line("/x", "GET"), line("/{a}"), line("/**", "PUT")), [("/x", REST, "/{a}", "/{a}")]),
        ((line("/x", "GET"), line("/{a}")), [("/x", REST, "/{a}", "/{a}")]),
        # Neither covers the other, and they meet all the same: at /x/y.
        ((line("/x/{a}", "GET"), line("/{b}/y", "PUT")), [("/x/{a}", "PUT", "/{b}/y PUT", "/{b}/y")]),
        ((line("/x/**", "GET"), line("/{b}/y", "PUT")), [("/x/**", "PUT", "/{b}/y PUT", "/{b}/y")]),
        ((line("/x/**", "GET"), line("/{b}/y/**", "PUT")), [("/x/**", "PUT", "/{b}/y/** PUT", "/{b}/y/**")]),
        ((line("/x/{a}", "GET"), line("/{b}/y", "PUT"), line("/x/y")), []),
        ((line("/x/{a}", "GET"), line("/{b}/y/z", "PUT")), []),
        ((line("/x/{a}/{b}", "GET"), line("/{b}/y", "PUT")), []),
        # Their shortest common path is that of a third, which takes the method there, but not below it.
        (
            (line("/x/y/**", "GET"), line("/x/{b}", "PUT"), line("/{a}/y/**", "PUT")),
            [("/x/y/**", "PUT", "/x/{b} PUT", "/x/{b}"), ("/x/y/**", "PUT", "/{a}/y/** PUT", "/{a}/y/**")],
        ),
        # A pattern that judges nothing takes nothing.
        (
            (line("/x/**", "GET"), line("/**", "PUT"), line("/x"), line("/x/{a}/**")),
            [],
        ),
        # An empty segment is left to it, for a broader rule that accepts one.
        (
            (
                line("/x/**", "GET"),
                rule("empty", "[a.example]", "/**", "methods: [PUT], accept: [empty_segment], allow: anyone"),
                line("/x"),
                line("/x/{a}/**"),
            ),
            [("/x/**", "PUT", "empty", "/**")],
        ),
        ((line("/x/**", "GET"), line("/**", "PUT"), line("/x/{a}/**")), [("/x/**", "PUT", "/** PUT", "/**")]),
        ((line("/x/**", "GET"), line("/**", "PUT"), line("/x")), [("/x/**", "PUT", "/** PUT", "/**")]),
        # Rules for everywhere compete on every host.
        ((line("/x", "GET", "everywhere"), line("/**")), [("/x", REST, "/**", "/**")]),
        ((line("/x", "GET"), line("/**", "", "everywhere")), [("/x", REST, "/**", "/**")]),
        ((line("/x", "GET"), line("/x", "PUT", "everywhere"), line("/**", "PUT")), []),
        # What is refused as ambiguous is not judged by the broader rule either.
        ((rule("n", "[a.example]", "/y;", "methods: [GET], accept: [semicolon], allow: anyone"), line("/**")), []),
    ],
)
def test_what_a_narrower_path_takes(rules: tuple[str, ...], expected: list[Told]) -> None:
    assert sorted(uncovered(*rules)) == sorted(expected)


def test_enough_rules_are_named_and_every_method() -> None:
    broader = [line(f"/{{b}}/{n}", "PUT", name=f"b{n}") for n in range(ENOUGH + 2)]
    told = uncovered(
        line("/x/{a}", "GET"), *broader, line("/{b}/y", "DELETE, PUT", name="other"), line("/**", "PATCH", name="all")
    )
    assert [its[1:3] for its in told if its[0] == "/x/{a}"] == [
        ("PATCH", "all"),
        *(("PUT", f"b{n}") for n in range(ENOUGH - 1)),
        ("DELETE", "other"),
    ]


def _told(policy: Policy) -> set[tuple[str, *Told]]:
    return {
        (str(host), its.narrow.path.text, method, its.broad.rule.name, its.broad.path.text)
        for host, table, _ in tables_of(policy)
        for its in find_uncovered(table)
        for method in its.methods
        # GET covers HEAD: to name it beside GET adds nothing.
        if method != "HEAD" or "GET" not in (its.broad.rule.methods or ()) or "HEAD" in (its.broad.rule.methods or ())
    }


def _lost(policy: Policy) -> set[tuple[str, *Told]]:
    found = set()
    for pattern, table, hosts in tables_of(policy):
        for host, target, method in requests_of(hosts):
            try:
                match_rule(policy, host, target, method)
            except Rejected as refusal:
                if refusal.reason is not Reason.METHOD_NOT_COVERED:
                    continue
                narrow, *broader = match_all_paths(table.root, target.segments)
                entry = next((entry for its in broader if (entry := its.match(method)) is not None), None)
                if entry is None:
                    continue
                try:
                    check_accepted(target, entry.rule.accept)
                except Rejected:
                    continue
                name = REST if entry.rule.methods is None else method
                if name != "HEAD" or "HEAD" in (entry.rule.methods or ()):
                    path = next(narrow.entries()).path.text
                    found.add((str(pattern), path, name, entry.rule.name, entry.path.text))
    return found


@settings(max_examples=150, deadline=None)
@given(policies())
def test_exactly_what_some_request_loses_is_told(policy: Policy) -> None:
    assert _told(policy) == _lost(policy)
