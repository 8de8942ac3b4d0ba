"""The bound on what is kept counts what is really taken up."""

from __future__ import annotations

import json
import time
import tracemalloc
from typing import Any

import pytest

from authz.cache import CacheStats
from authz.clients.evidence import Evidence, EvidenceCache, token_digest
from authz.core.claims import read_principal
from authz.core.strictjson import parse_object
from authz.model import ClaimPlaces, Expectation, Provider, Reason

PROVIDER = Provider(
    name="shop",
    issuer="https://sso.example.com",
    expectation=Expectation(issuer="https://sso.example.com", audiences=None, algorithms=frozenset({"RS256"})),
    keys=None,
    places=ClaimPlaces(roles=(("realm_access", "roles"),), client_roles=("resource_access",)),
    digest=b"d" * 32,
)


def claims_of(number: int, roles: int) -> dict[str, Any]:
    return {
        "iss": "https://sso.example.com",
        "sub": f"user-{number}",
        "exp": 4_000_000_000 + number,
        "scope": "openid profile email",
        "groups": [f"/staff/team-{its}-{number}" for its in range(roles // 2)],
        "realm_access": {"roles": [f"role-{its}-of-{number}" for its in range(roles)]},
        "resource_access": {"api": {"roles": [f"client-role-{its}-{number}" for its in range(roles)]}},
    }


def fill(*, count: int, roles: int, max_bytes: int) -> tuple[CacheStats, int]:
    """Keep as many tokens as there is place for; return the cache's figures and the bytes it really takes up."""
    texts = [json.dumps(claims_of(number, roles)).encode() for number in range(count)]
    cache = EvidenceCache(max_bytes=max_bytes, clock=time.monotonic)
    tracemalloc.start()
    for number, text in enumerate(texts):
        claims = parse_object(text, reason=Reason.JWT_PAYLOAD)
        evidence = Evidence(
            claims=claims,
            principal=read_principal(PROVIDER, claims),
            key="k",
            asked_s=None,
            expires_at_s=4e9,
        )
        cache.keep(token_digest(PROVIDER, f"token-{number}"), evidence, keep_s=1_000)
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return cache.stats(), taken


@pytest.mark.parametrize("roles", [0, 5, 50, 300])
def test_the_size_that_is_counted_is_near_the_size_that_is_taken_up(roles: int) -> None:
    count = 200 if roles < 100 else 40
    stats, taken = fill(count=count, roles=roles, max_bytes=1 << 30)
    assert 0.8 < stats.bytes / taken < 1.5, (stats.bytes // count, taken // count)


@pytest.mark.parametrize("roles", [0, 5, 50])
def test_packed_evidence_counts_near_what_it_takes_up_and_far_less_than_before(roles: int) -> None:
    ready, _ = fill(count=100, roles=roles, max_bytes=1 << 30)  # none is packed
    stats, taken = fill(count=1_500, roles=roles, max_bytes=ready.bytes // 100 * 80)
    assert stats.entries > 2 * 80
    assert 0.8 < stats.bytes / taken < 1.5, (stats.bytes // stats.entries, taken // stats.entries)
