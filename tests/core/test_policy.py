"""Which rule judges a request, and which guards."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authz.core.path import check_accepted, parse_host, parse_target
from authz.core.policy import match_guards, match_rule
from authz.model import Reason, Rejected
from tests.core.build import judged_by, policy_of, request, rule


def refusal(policy_text: str, method: str, url: str) -> Reason:
    with pytest.raises(Rejected) as caught:
        judged_by(policy_of(policy_text), method, url)
    return caught.value.reason


HOSTS = "rules:\n" + "".join(
    (
        rule("all", "everywhere", "/health"),
        rule("broad", "['*.example.com']", "/**"),
        rule("narrower", "['*.shop.example.com']", "/x/**"),
        rule("tenant", "['{t}.shop.example.com']", "/x/**"),
        rule("exact", "[a.shop.example.com]", "/x/y"),
    )
)
RELATIONS = """hosts:
  a.shop.example.com: replaces
  "*.shop.example.com": replaces
  "{t}.shop.example.com": replaces
"""


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("a.shop.example.com/x/y", "exact"),
        ("b.shop.example.com/x/y", "tenant"),
        ("a.b.shop.example.com/x/y", "narrower"),
        ("www.example.com/x/y", "broad"),
        ("www.example.com/health", "all"),
        ("unknown.org/health", "all"),
        ("a.shop.example.com/health", "all"),
        ("A.Shop.Example.com.:8443/x/y", "exact"),
    ],
)
def test_the_narrowest_host_judges_and_everywhere_competes_by_path(url: str, name: str) -> None:
    assert judged_by(policy_of(HOSTS + RELATIONS), "GET", url) == name


@pytest.mark.parametrize("url", ["a.shop.example.com/x", "b.shop.example.com/y", "unknown.org/x", "example.com/x"])
def test_no_rule_is_no_way_to_a_broader_host(url: str) -> None:
    assert refusal(HOSTS + RELATIONS, "GET", url) is Reason.NO_RULE


METHODS = "rules:\n" + "".join(
    (
        rule("get", "[a.example]", "/x/y", "methods: [GET], allow: anyone"),
        rule("post", "[a.example]", "/x/y", "methods: [POST], allow: anyone"),
        rule("rest", "[a.example]", "/x/z"),
        rule("put", "[a.example]", "/x/z", "methods: [PUT], allow: anyone"),
        rule("broad", "[a.example]", "/x/**"),
    )
)


@pytest.mark.parametrize(
    ("method", "url", "name"),
    [
        ("GET", "a.example/x/y", "get"),
        ("HEAD", "a.example/x/y", "get"),
        ("POST", "a.example/x/y/", "post"),
        ("PUT", "a.example/x/z", "put"),
        ("DELETE", "a.example/x/z", "rest"),
        ("PROPFIND", "a.example/x/w", "broad"),
    ],
)
def test_a_rule_that_names_the_method_comes_before_one_that_names_none(method: str, url: str, name: str) -> None:
    assert judged_by(policy_of(METHODS), method, url) == name


@pytest.mark.parametrize("method", ["DELETE", "OPTIONS", "get", "TRACE"])
def test_a_method_without_a_rule_never_falls_back_to_a_broader_path(method: str) -> None:
    assert refusal(METHODS, method, "a.example/x/y") is Reason.METHOD_NOT_COVERED
    assert judged_by(policy_of(METHODS), method, "a.example/x/w") == "broad"


def test_the_asterisk_has_no_rule() -> None:
    policy = policy_of("rules:\n" + rule("all", "everywhere", "/**"))
    asked = request("OPTIONS", "a.example/x")
    target = parse_target("*", method="OPTIONS")
    with pytest.raises(Rejected) as caught:
        match_rule(policy, asked.host, target, "OPTIONS")
    assert caught.value.reason is Reason.NO_RULE
    assert match_rule(policy, asked.host, asked.target, "OPTIONS").rule.name == "all"


def test_captures_are_decoded_and_named() -> None:
    policy = policy_of("rules:\n" + rule("one", "['{tenant}.example.com']", "/users/{user}/**"))
    asked = request("GET", "blue.example.com/users/al%20ice/x")
    match = match_rule(policy, asked.host, asked.target, "GET")
    assert (dict(match.host), dict(match.path)) == ({"tenant": "blue"}, {"user": "al ice"})


GUARDS = """
guards:
  - {name: admin, hosts: [a.example], paths: ["/admin/**"], require: {roles: admin}}
  - {name: tenant, hosts: ["{t}.example"], paths: ["/{area}/**"], require: {when: "host.t == path.area"}}
  - {name: all, hosts: everywhere, paths: ["/**"], require: {networks: 192.0.2.0/24}}
"""


@pytest.mark.parametrize(
    ("url", "names"),
    [
        ("a.example/admin", {"admin", "tenant", "all"}),
        ("a.example/admin/x/y", {"admin", "tenant", "all"}),
        ("a.example/x%2fadmin", {"tenant", "all"}),
        ("a.example/administrator", {"tenant", "all"}),
        ("a.example/", {"all"}),
        ("b.example/admin", {"tenant", "all"}),
        ("b.org/admin", {"all"}),
        # What an upstream may make of an accepted ambiguity counts too.
        ("a.example//admin/x", {"admin", "tenant", "all"}),
        ("a.example/admin%2fx", {"admin", "tenant", "all"}),
        ("a.example/admin;x", {"admin", "tenant", "all"}),
        ("a.example/admin%3fx", {"admin", "tenant", "all"}),
        ("a.example/admin;x=%2fy/z", {"admin", "tenant", "all"}),
        ("a.example//admin/a%2fb", {"admin", "tenant", "all"}),
        ("a.example/%2561dmin", {"admin", "tenant", "all"}),
    ],
)
def test_every_guard_that_covers_a_request(url: str, names: set[str]) -> None:
    policy = policy_of(GUARDS + "rules:\n" + rule("all", "everywhere", "/**"))
    asked = request("GET", url)
    assert {its.guard.name for its in match_guards(policy, asked.host, asked.target)} == names


def test_a_guard_sees_each_reading_with_its_own_captures() -> None:
    policy = policy_of(GUARDS + "rules:\n" + rule("all", "everywhere", "/**"))
    asked = request("GET", "a.example/a%2fb/c")
    areas = {
        its.path.get("area") for its in match_guards(policy, asked.host, asked.target) if its.guard.name == "tenant"
    }
    assert areas == {"a/b", "a"}
    assert match_guards(policy_of("rules:\n" + rule("all", "everywhere", "/**")), asked.host, asked.target) == ()


def test_a_guard_can_end_at_its_path() -> None:
    guards = "guards:\n" + "".join(
        f"  - {{name: g{n}, hosts: [a.example], paths: ['/x'], require: {{roles: r}}}}\n" for n in range(2)
    )
    policy = policy_of(guards + "rules:\n" + rule("all", "everywhere", "/**"))
    for url, count in (("a.example/x", 2), ("a.example/x/y", 0)):
        asked = request("GET", url)
        assert len(match_guards(policy, asked.host, asked.target)) == count


PUBLIC = policy_of("rules:\n" + rule("public", "[a.example]", "/public/**"))
READERS: tuple[Callable[[str], str], ...] = (
    lambda path: path,
    unquote,
    lambda path: unquote(unquote(path)),
    lambda path: re.sub(r";[^/]*", "", path),
    lambda path: re.sub(r";[^/]*", "", unquote(path)),
    lambda path: unquote(path).replace("\\", "/"),
    lambda path: re.sub("/+", "/", unquote(path)),
    lambda path: unquote(path).partition("\0")[0],
    lambda path: unquote(path).partition("#")[0],
    lambda path: unquote(path, encoding="latin-1"),
)
"""What upstreams are known to make of a path before they use it."""

PIECES = st.sampled_from(
    [
        *(
            "/",
            "//",
            "public",
            "admin",
            ".",
            "..",
            "%2e",
            "%2E",
            "%252e",
            "%2f",
            "%252f",
            "%5c",
            "\\",
            ";",
            ";x",
            "%3b",
        ),
        *("%00", "#", "?", "%23", "%3f", "..;", "%c0%ae", "%c0%af", "%ef%bc%8f", "%u002e", "%", "%25", " ", "%20", "a"),
    ]
)


@given(st.lists(PIECES, max_size=8))
def test_what_is_allowed_as_public_is_public_to_every_reader(pieces: list[str]) -> None:
    try:
        target = parse_target("/public" + "".join(pieces), method="GET")
        check_accepted(target, frozenset())
        match_rule(PUBLIC, parse_host("a.example"), target, "GET")
    except Rejected:
        return
    for read in READERS:
        seen = posixpath.normpath(read(target.raw_path))
        assert seen == "/public" or seen.startswith("/public/"), (target.raw_path, seen)
