"""Tokens of a real Keycloak, judged by the real service over gRPC.

Its public name is not where it is reached, as in a cluster: every test goes through ``internal_url``.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from authz.app import SystemClock
from authz.clients.probe import probe
from tests.fakes import Signer
from tests.keycloak.server import Keycloak, missing
from tests.parts import lacking
from tests.servers.service import DOORS, Service, ask, check_request, running, serving, told

pytestmark = [pytest.mark.keycloak, pytest.mark.timeout(1_500)]

RULES, _, SERVER = Path(__file__).with_name("keycloak_rules.yaml").read_text().partition("server:\n  ")
PUBLIC = "http://sso.example.test:8080"


@pytest.fixture(scope="module")
def keycloak() -> Iterator[Keycloak]:
    lack = missing()
    if lack is not None:
        lacking("Keycloak", lack)
    with Keycloak(hostname=PUBLIC) as running:
        yield running


class Asked:
    """The running service, asked over gRPC."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._seen = 0
        self._channel = grpc.aio.insecure_channel(service.address)

    @property
    def lines(self) -> list[dict[str, Any]]:
        return self._service.lines

    @property
    def log(self) -> io.StringIO:
        return self._service.log

    async def ask(self, path: str, token: str) -> str:
        """Return ``allow``, or the Reason of the deny."""
        response = await ask(self._channel, check_request(path, authorization=f"Bearer {token}"))
        self._seen += 1
        line = (await told(self._service, self._seen))[-1]
        assert (response.status.code == 0) is (line["decision"] == "allow")
        reason: str = line.get("reason", "allow")
        return reason

    async def close(self) -> None:
        await self._channel.close(None)


def environ_of(keycloak: Keycloak) -> dict[str, str]:
    return {
        "ISSUER": keycloak.issuer(),
        "INTERNAL": f"{keycloak.base_url}/realms/shop",
        "ORDERS_SECRET": keycloak.secret("orders-api") or "",
        "KC_AUTHZ_SECRET": keycloak.secret("kc-authz") or "",
    }


@pytest.fixture(params=DOORS)
async def service(keycloak: Keycloak, tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Asked]:
    async with serving(request.param, tmp_path, RULES, server=SERVER, environ=environ_of(keycloak)) as running:
        asked = Asked(running)
        yield asked
        await asked.close()


def access(keycloak: Keycloak, client: str = "web", **kwargs: Any) -> str:
    if client in {"web", "web-light", "web-noaud"}:
        kwargs.setdefault("username", "alice")
    token: str = keycloak.token(client, **kwargs)["access_token"]
    return token


async def test_password_and_client_credentials(keycloak: Keycloak, service: Asked) -> None:
    assert await service.ask("/orders", access(keycloak)) == "allow"
    line = service.lines[-1]
    assert (line["issuer"], line["client"]) == (f"{PUBLIC}/realms/shop", "web")
    assert await service.ask("/orders", access(keycloak, "svc")) == "allow"
    assert service.lines[-1]["client"] == "svc"
    assert await service.ask("/orders", access(keycloak, username="bob")) == "role_missing"


async def test_roles_and_groups(keycloak: Keycloak, service: Asked) -> None:
    alice, bob = access(keycloak), access(keycloak, username="bob")
    for path, expected in (
        ("/orders", "allow"),
        ("/write", "allow"),
        ("/realm-write", "role_missing"),
        ("/ops", "allow"),
        ("/sales", "group_missing"),
    ):
        assert await service.ask(path, alice) == expected, path
    for path, expected in (("/write", "role_missing"), ("/ops", "group_missing"), ("/any", "allow")):
        assert await service.ask(path, bob) == expected, path


async def test_a_lightweight_token_is_asked_about(keycloak: Keycloak, service: Asked) -> None:
    token = access(keycloak, "web-light")
    assert await service.ask("/orders", token) == "allow"
    assert service.lines[-1]["subject"] == keycloak.user_id("alice")
    assert await service.ask("/ops", token) == "allow"


async def test_an_introspecting_client_that_is_not_in_the_audience(keycloak: Keycloak, service: Asked) -> None:
    assert await service.ask("/stranger", access(keycloak)) == "allow"
    assert await service.ask("/stranger", access(keycloak, "web-noaud")) == "token_inactive"
    async with asyncio.timeout(5):  # the fast door's lines come through another process, after the answer
        while "client `kc-authz` is not in the token's `aud`" not in service.log.getvalue():
            await asyncio.sleep(0.02)


async def test_after_a_logout_introspection_says_inactive(keycloak: Keycloak, service: Asked) -> None:
    tokens = keycloak.token("web", username="alice")
    assert await service.ask("/asked", tokens["access_token"]) == "allow"
    keycloak.logout(tokens, "web")
    assert await service.ask("/asked", tokens["access_token"]) == "token_inactive"
    # Whoever only verifies the signature does not know of it: that is what introspection is for.
    assert await service.ask("/orders", tokens["access_token"]) == "allow"


async def test_other_tokens_are_no_access_tokens(keycloak: Keycloak, service: Asked) -> None:
    tokens = keycloak.token("web", username="alice", scope="openid")
    assert await service.ask("/any", tokens["access_token"]) == "allow"
    assert await service.ask("/any", tokens["id_token"]) == "token_type"
    assert await service.ask("/any", tokens["refresh_token"]) == "jwt_algorithm"


async def test_a_token_of_another_realm(keycloak: Keycloak, service: Asked) -> None:
    other = keycloak.token("web", username="mallory", realm="other")["access_token"]
    assert await service.ask("/orders", other) == "issuer_mismatch"
    assert await service.ask("/orders", access(keycloak)) == "allow"


async def test_a_token_for_somebody_else(keycloak: Keycloak, service: Asked) -> None:
    token = access(keycloak)
    assert await service.ask("/any", token) == "allow"
    assert await service.ask("/billing", token) == "audience_mismatch"


async def test_the_public_name_alone_does_not_lead_to_the_keys(keycloak: Keycloak, service: Asked) -> None:
    assert await service.ask("/outside", access(keycloak)) == "keys_unavailable"
    assert await service.ask("/orders", access(keycloak)) == "allow"


async def test_an_expired_token(keycloak: Keycloak, service: Asked) -> None:
    token = access(keycloak, "short")
    assert await service.ask("/strict", token) == "allow"
    await asyncio.sleep(4)
    assert await service.ask("/strict", token) == "expired"


async def test_keys_rotate_without_one_refused_good_token(keycloak: Keycloak, service: Asked) -> None:
    old = access(keycloak)
    assert await service.ask("/orders", old) == "allow"
    keycloak.rotate_key()
    for _ in range(10):
        new = await asyncio.to_thread(access, keycloak)
        assert [await service.ask("/orders", its) for its in (new, old)] == ["allow", "allow"]
    # A key that leaves the set takes its tokens with it at the next refresh: a token of an unknown key brings it about.
    keycloak.disable_old_keys()
    await asyncio.sleep(1.1)
    stranger = Signer("nobody's").sign({"iss": keycloak.issuer()}, typ="JWT")
    assert await service.ask("/orders", stranger) == "jwt_unknown_key"
    assert await service.ask("/orders", old) == "key_refetch_held_back"
    await asyncio.sleep(1.1)
    assert await service.ask("/orders", old) == "jwt_unknown_key"
    assert await service.ask("/orders", new) == "allow"


async def test_validate_online_finds_what_is_wrong_with_the_introspecting_client(
    keycloak: Keycloak, tmp_path: Path
) -> None:
    clock = SystemClock()
    async with running(tmp_path, RULES, server=SERVER, environ=environ_of(keycloak)) as service:
        assert service.app.gate.snapshot is not None
        authenticators = service.app.gate.snapshot.authenticators
        for name, client, good in (
            ("shop", "web", True),
            ("stranger", "web", True),
            ("stranger", "web-noaud", False),
        ):
            findings = await probe(authenticators[name], access(keycloak, client), clock=clock)
            assert [its.good for its in findings] == [True, True, True, good], findings
            assert ("audience mapper" in findings[-1].text) is not good
            assert "issuer as configured" in findings[0].text
            assert "clock" in findings[1].text
