"""Hosts are matched, and patterns include each other, as in Istio."""

from __future__ import annotations

import pytest

from authz.mesh.policies import includes_pattern, matches_host


@pytest.mark.parametrize(
    ("pattern", "host", "matched"),
    [
        ("a.example", "A.EXAMPLE", True),
        ("a.example", "a.example:80", False),
        ("a.example:*", "a.example:80", True),
        ("a.example:*", "a.example", False),
        ("*.example", "a.Example", True),
        ("*.example", "a.example:80", False),
        ("*", "anything", True),
        ("*", "", False),
    ],
)
def test_hosts_are_matched_as_istio_does(pattern: str, host: str, *, matched: bool) -> None:
    assert matches_host(pattern, host) is matched


@pytest.mark.parametrize(
    ("outer", "inner", "included"),
    [
        ("*", "*.a", True),
        ("*.a", "*.b.a", True),
        ("*.b.a", "*.a", False),
        ("a*", "ab*", True),
        ("ab*", "a*", False),
        ("*.a", "x.a", True),
        ("*.a", "x.*", False),
        ("x.*", "*.a", False),
        ("A.b", "a.B", True),
    ],
)
def test_patterns_include_each_other_only_surely(outer: str, inner: str, *, included: bool) -> None:
    assert includes_pattern(outer, inner) is included
