"""What a client and an upstream see through a real Envoy, over HTTP/1.1 and HTTP/2."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from authz.core.jwt import MAX_TOKEN_BYTES
from tests.e2e.stack import Stack

pytestmark = pytest.mark.e2e

HOST = "shop.localhost"
FORGED = [("X-User", "root"), ("x-user", "other"), ("x_user", "root"), ("x.user", "root"), ("X-Roles", "admin")]


class Caller:
    """Sends requests as they are written: no path is tidied up on the way."""

    def __init__(self, stack: Stack, client: httpx.Client) -> None:
        self.stack = stack
        self.client = client

    def __call__(
        self,
        path: str,
        *,
        method: str = "GET",
        host: str = HOST,
        token: str | None = None,
        headers: list[tuple[str, str]] | None = None,
        listener: str = "http",
        content: bytes | None = None,
    ) -> httpx.Response:
        fields = [("host", host), *(headers or [])]
        if token is not None:
            fields.append(("authorization", f"Bearer {token}"))
        url = f"http://127.0.0.1:{self.stack.ports[listener]}/"
        request = self.client.build_request(
            method, url, headers=fields, content=content, extensions={"target": path.encode()}
        )
        return self.client.send(request)


@pytest.fixture(params=["http/1.1", "http/2"])
def call(stack: Stack, request: pytest.FixtureRequest) -> Iterator[Caller]:
    two = request.param == "http/2"
    with httpx.Client(http1=not two, http2=two, trust_env=False, timeout=10) as client:
        yield Caller(stack, client)


@pytest.fixture
def alice(stack: Stack) -> str:
    return stack.provider.mint(stack.provider.claims("alice"))


def seen(response: httpx.Response) -> dict[str, list[str]]:
    """Return the headers that the upstream saw."""
    assert response.status_code == 200, response.text
    found: dict[str, list[str]] = {}
    for name, value in response.json()["headers"]:
        found.setdefault(name, []).append(value)
    return found


def reason(stack: Stack) -> Any:
    return stack.last.get("reason")


def test_an_allow_passes_with_identity(call: Caller, alice: str) -> None:
    headers = seen(call("/orders/7?a=b", token=alice))
    assert headers["x-user"] == ["demo:alice"]
    assert headers["x-roles"] == ["demo:orders-reader"]
    assert headers["authorization"] == [f"Bearer {alice}"]
    assert call.stack.last["decision"] == "allow"


@pytest.mark.parametrize("path", ["/orders/7", "/public/news"])
def test_forged_identity_never_arrives(call: Caller, alice: str, path: str) -> None:
    headers = seen(call(path, token=alice, headers=FORGED))
    expected = ["demo:alice"] if path == "/orders/7" else None
    assert headers.get("x-user") == expected
    assert not {"x_user", "x.user"} & headers.keys()
    assert headers.get("x-roles") == (["demo:orders-reader"] if expected else None)


def test_a_credential_does_not_reach_an_upstream_that_asks_nobody(call: Caller, alice: str) -> None:
    assert "authorization" not in seen(call("/public/news", token=alice))


def test_downstream_headers_on_allow(call: Caller) -> None:
    response = call("/public/news")
    assert response.headers["x-frame-options"] == "DENY"
    assert response.headers["x-upstream"] == "echo"


@pytest.mark.parametrize(
    ("path", "status", "slug"),
    [
        ("/orders/..%2fpublic/x", 400, "path_dot_segment"),
        ("/orders/../public/x", 400, "path_dot_segment"),
        ("/public/..;/orders/7", 400, "path_dot_segment"),
        ("/orders/%2e%2e/7", 400, "path_dot_segment"),
        ("/orders//7", 400, "path_empty_segment"),
        ("/orders/a%2fb", 400, "path_encoded_slash"),
        ("/orders/a%5cb", 400, "path_backslash"),
        ("/orders/a;b", 400, "path_semicolon"),
        ("/orders/%zz", 400, "path_bad_escape"),
        ("/orders/%ff", 400, "path_bad_utf8"),
        ("/orders/%00", 400, "path_control"),
        ("/orders/7", 401, "no_credential"),
        ("/nowhere", 403, "no_rule"),
    ],
)
def test_denies_by_path(call: Caller, path: str, status: int, slug: str) -> None:
    response = call(path)
    assert (response.status_code, reason(call.stack)) == (status, slug)
    line = call.stack.last
    assert (line["method"], line["host"], line["path"]) == ("GET", HOST, path)
    assert line["id"] == response.json()["request_id"]
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["content-type"] == "application/problem+json"
    assert json.loads(response.text)["status"] == status
    assert slug not in response.text


def test_a_challenge_names_no_error_where_no_token_came(call: Caller) -> None:
    assert call("/orders/7").headers["www-authenticate"] == f'Bearer realm="{HOST}"'


def test_a_refused_token_is_told_so_and_no_more(call: Caller) -> None:
    provider = call.stack.provider
    response = call("/orders/7", token=provider.mint(provider.claims("alice", lifetime_s=-60)))
    assert (response.status_code, reason(call.stack)) == (401, "expired")
    assert response.headers["www-authenticate"] == f'Bearer realm="{HOST}", error="invalid_token"'


def test_proved_but_not_enough(call: Caller) -> None:
    provider = call.stack.provider
    response = call("/orders/7", token=provider.mint(provider.claims("bob")))
    assert (response.status_code, reason(call.stack)) == (403, "role_missing")


def test_two_credentials_are_refused(call: Caller, alice: str) -> None:
    twice = [("authorization", f"Bearer {alice}"), ("authorization", f"Bearer {alice}")]
    response = call("/orders/7", headers=twice)
    assert (response.status_code, reason(call.stack)) == (400, "credential_twice")


def test_a_token_over_the_limit_is_refused_before_it_is_read(call: Caller) -> None:
    response = call("/orders/7", token="a" * (MAX_TOKEN_BYTES + 1))
    assert (response.status_code, reason(call.stack)) == (400, "credential_too_large")


def test_an_opaque_token_is_asked_about_until_it_is_revoked(call: Caller) -> None:
    provider = call.stack.provider
    token, revoked = (provider.mint_opaque(provider.claims("alice")) for _ in range(2))
    provider.revoke(revoked)
    assert seen(call("/orders/7", token=token))["x-user"] == ["demo:alice"]
    response = call("/orders/7", token=revoked)
    assert (response.status_code, reason(call.stack)) == (401, "token_inactive")


def test_identity_that_would_have_to_be_cut_is_an_error(call: Caller) -> None:
    provider = call.stack.provider
    claims = provider.claims("alice")
    claims["realm_access"]["roles"] = ["orders-reader", *(f"role-{n:04}-of-many" for n in range(480))]
    response = call("/orders/7", token=provider.mint(claims))
    assert (response.status_code, reason(call.stack)) == (500, "header_budget")


def test_a_rule_words_its_own_answer(call: Caller) -> None:
    response = call("/closed")
    assert (response.status_code, reason(call.stack)) == (302, "nobody")
    assert response.headers["location"] == "https://www.example.com/"


def test_a_token_in_the_query_is_taken_out_of_it(call: Caller, alice: str) -> None:
    response = call(f"/downloads/a?x=1&access_token={alice}&y=2")
    headers = seen(response)
    assert response.json()["query"] == "x=1&y=2"
    assert headers["x-user"] == ["demo:alice"]
    assert call(f"/downloads/a?x=1&access%5Ftoken={alice}").status_code == 400
    assert reason(call.stack) == "query_ambiguous"


def test_a_token_in_a_cookie_is_taken_out_of_it(call: Caller, alice: str) -> None:
    headers = seen(call("/downloads/a", headers=[("cookie", f"a=1; session_token={alice}; b=2")]))
    assert headers["x-user"] == ["demo:alice"]
    assert headers["cookie"] == ["a=1; b=2"]
    # Also on a rule of the same host that reads no cookie.
    assert seen(call("/public/a", headers=[("cookie", f"session_token={alice}")])).get("cookie") is None


def test_a_body_arrives_whole(call: Caller, alice: str) -> None:
    body = b'{"n": 1}' * 1_000
    response = call("/orders/7", method="POST", token=alice, content=body)
    assert response.json()["body"] == body.decode()


def test_methods_are_part_of_the_question(call: Caller, alice: str) -> None:
    assert call("/orders/7", method="DELETE", token=alice).status_code == 200
    assert call.stack.last["method"] == "DELETE"


def test_a_browsers_preflight_is_answered(call: Caller) -> None:
    origin = [("origin", "https://app.example.com"), ("access-control-request-method", "PUT")]
    response = call(
        "/orders/7", method="OPTIONS", headers=[*origin, ("access-control-request-headers", "authorization")]
    )
    assert response.status_code == 204
    assert response.headers["access-control-allow-origin"] == "https://app.example.com"
    assert response.headers["access-control-allow-methods"] == "GET, PUT"
    assert response.headers["vary"] == "origin"
    assert response.headers["access-control-allow-credentials"] == "true"
    refused = call("/orders/7", method="OPTIONS", headers=[("origin", "https://evil.example.com"), origin[1]])
    assert (refused.status_code, reason(call.stack)) == (403, "origin_refused")
    assert "access-control-allow-origin" not in refused.headers


def test_a_denied_cross_origin_call_can_be_read_by_the_page(call: Caller) -> None:
    response = call("/orders/7", headers=[("origin", "https://app.example.com")])
    assert response.status_code == 401
    assert response.headers["access-control-allow-origin"] == "https://app.example.com"
    assert response.headers["vary"] == "origin"
    assert (
        "access-control-allow-origin" not in call("/orders/7", headers=[("origin", "https://evil.example.com")]).headers
    )


def test_a_deny_stands_although_failures_would_be_let_in(call: Caller, alice: str) -> None:
    response = call("/orders/7", listener="open")
    assert (response.status_code, reason(call.stack)) == (401, "no_credential")
    assert call("/orders/7", listener="open", token=alice).status_code == 200


def test_an_oversized_check_is_a_deny_and_no_failure(call: Caller) -> None:
    few, many = ([(f"x-filler-{n}", "a" * 1_000) for n in range(count)] for count in (25, 40))
    assert call("/public/a", listener="open", headers=few).status_code == 200
    response = call("/public/a", listener="open", headers=many)
    assert (response.status_code, reason(call.stack)) == (400, "request_too_large")


def test_a_service_that_is_down_lets_nobody_in(call: Caller, alice: str) -> None:
    assert call("/orders/7", listener="down", token=alice).status_code == 503
    # What the other setting does, so that nobody sets it by accident.
    assert call("/orders/7", listener="down_open").status_code == 200


def test_a_provider_that_hangs_is_answered_inside_the_deadline(call: Caller) -> None:
    began = time.monotonic()
    response = call("/partners/x", token=f"opaque-{began}", listener="open")
    assert time.monotonic() - began < 1.0
    assert (response.status_code, reason(call.stack)) == (503, "deadline")
    assert int(response.headers["retry-after"]) >= 1


def test_a_grpc_client_gets_a_status_and_not_a_page(stack: Stack) -> None:
    with httpx.Client(http1=False, http2=True, trust_env=False) as client:
        response = client.post(
            f"http://127.0.0.1:{stack.ports['http']}/orders/7",
            headers={"host": HOST, "content-type": "application/grpc", "te": "trailers"},
            content=b"\0\0\0\0\0",
        )
    assert response.status_code == 200
    assert response.headers["grpc-status"] == "16"
    assert response.headers["grpc-message"] == "unauthorized"
    assert reason(stack) == "no_credential"


def test_the_access_log_can_say_what_was_decided(stack: Stack, alice: str) -> None:
    for token, facts in (
        (alice, {"decision": "allow", "rule": "orders", "subject": "alice", "client": "demo-cli"}),
        ("", {"decision": "deny", "rule": "orders", "reason": "no_credential"}),
    ):
        name = f"id-{time.monotonic_ns()}"
        headers = {"host": HOST, "x-request-id": name} | ({"authorization": f"Bearer {token}"} if token else {})
        httpx.get(f"http://127.0.0.1:{stack.ports['http']}/orders/7", headers=headers, trust_env=False)
        until = time.monotonic() + 15
        lines: list[dict[str, Any]] = []
        while not lines and time.monotonic() < until:
            time.sleep(0.1)
            found = [json.loads(line) for line in stack.access_log.read_text().splitlines()]
            lines = [line for line in found if line["id"] == name or facts.items() <= line.items()]
        assert facts.items() <= lines[-1].items()


def _upgrade(stack: Stack, path: str, token: str = "") -> tuple[bytes, socket.socket]:
    connection = socket.create_connection(("127.0.0.1", stack.ports["http"]), timeout=10)
    lines = [f"GET {path} HTTP/1.1", f"host: {HOST}", "connection: upgrade", "upgrade: websocket"]
    lines += ["sec-websocket-version: 13", "sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA=="]
    lines += [f"authorization: Bearer {token}"] if token else []
    connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
    return connection.recv(4_096), connection


def test_a_websocket_is_judged_at_its_handshake(stack: Stack, alice: str) -> None:
    head, connection = _upgrade(stack, "/ws/private", alice)
    with connection:
        assert b" 101 " in head.split(b"\r\n", 1)[0]
        connection.sendall(b"hello")
        assert connection.recv(16) == b"hello"
    head, connection = _upgrade(stack, "/ws/private")
    with connection:
        assert b" 401 " in head.split(b"\r\n", 1)[0]
    assert reason(stack) == "no_credential"


def test_a_tcp_filter_is_denied_although_failures_would_be_let_in(stack: Stack) -> None:
    with socket.create_connection(("127.0.0.1", stack.ports["tcp"]), timeout=10) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(1_024) == b""
    assert reason(stack) == "not_http"
