"""What every server is measured with: one key, many tokens, the same requests and the same rules."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import jwt as pyjwt
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from jwt.algorithms import RSAAlgorithm
from load import Body, encode_message, zipf
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from authz.pb.envoy.service.auth.v3.external_auth_pb2 import CheckRequest, CheckResponse
from authz.servers.http import HttpServer

ISSUER: Final = "http://kc/realms/demo"
AUDIENCE: Final = "api"
HOST: Final = "shop.example.test"
CHECK: Final = "/envoy.service.auth.v3.Authorization/Check"
LIFETIME_S: Final = 7_200
RENEWED_A_MINUTE: Final = 20
"""One token in so many is another one each minute, as sessions come and go."""


@dataclass(frozen=True, slots=True)
class Size:
    """How large a request is: its CheckRequest and its token, in bytes, near enough."""

    name: str
    request_bytes: int
    token_bytes: int


SMALL: Final = Size("1.4 KB request, 0.8 KB token", 1_400, 800)
LARGE: Final = Size("4 KB request, 2.5 KB token", 4_000, 2_500)


class World:
    """The key, its JWKS document served on loopback, and requests with tokens signed by it."""

    def __init__(self) -> None:
        self._number = 0
        self.jwks: dict[str, list[dict[str, Any]]] = {"keys": []}
        self.kid = ""
        self.delay_s = 0.0
        """How long the provider takes to answer about an opaque token."""
        self.rotate()
        routes = [Route("/jwks.json", self._serve), Route("/introspect", self._introspect, methods=["POST"])]
        self._http = HttpServer(Starlette(routes=routes), "127.0.0.1:0")

    async def start(self) -> None:
        """Serve the key."""
        await self._http.start()

    async def stop(self) -> None:
        """End it."""
        await self._http.stop()

    @property
    def jwks_url(self) -> str:
        """Where the key is."""
        return f"http://127.0.0.1:{self._http.port}/jwks.json"

    def rotate(self) -> str:
        """Publish another key, which signs from now on; return the id of the one that did before."""
        before, self.kid = self.kid, f"k{len(self.jwks['keys']) + self._number + 1}"
        self._key = generate_private_key(public_exponent=65_537, key_size=2_048)
        member = json.loads(RSAAlgorithm.to_jwk(self._key.public_key()))
        self.jwks["keys"].append(member | {"kid": self.kid, "use": "sig", "alg": "RS256"})
        return before

    def forget(self, kid: str) -> None:
        """Publish a key no more."""
        self.jwks["keys"] = [its for its in self.jwks["keys"] if its["kid"] != kid]

    def token(self, size: Size, **changes: Any) -> str:
        """Sign a token of about a size; no two are alike."""
        claims = self.claims() | changes
        filler = max(0, (size.token_bytes - 342 - 70) * 3 // 4 - len(json.dumps(claims)) - 20)
        return pyjwt.encode(claims | {"note": "n" * filler}, self._key, algorithm="RS256", headers={"kid": self.kid})

    def body(self, size: Size, token: str, path: str = "/api/v1/orders/17") -> Body:
        """Return a call's message: a CheckRequest such as Envoy sends for a browser's request."""
        message = CheckRequest()
        http = message.attributes.request.http
        http.id, http.method, http.host, http.path = "8213947102", "GET", HOST, path
        http.scheme, http.protocol, http.size = "http", "HTTP/1.1", -1
        headers = {
            ":method": "GET", ":path": path, ":authority": HOST, ":scheme": "http", "accept": "application/json",
            "accept-encoding": "gzip, deflate, br", "user-agent": "Mozilla/5.0 (X11; Linux x86_64) Chrome/130.0",
            "x-forwarded-proto": "http", "x-forwarded-for": "192.0.2.7", "authorization": f"Bearer {token}",
            "x-request-id": "5b1a3c5e-8f5e-4c2e-9d4a-3f1a2b3c4d5e",
        }  # fmt: skip
        for name, value in headers.items():
            http.headers[name] = value
        message.attributes.source.address.socket_address.address = "192.0.2.7"
        spare = size.request_bytes - len(message.SerializeToString()) - 20
        if spare > 0:
            http.headers["cookie"] = "c=" + "x" * spare
        return encode_message(message.SerializeToString())

    @property
    def introspection_url(self) -> str:
        """Where opaque tokens are asked about; all of them are active."""
        return f"http://127.0.0.1:{self._http.port}/introspect"

    def claims(self) -> dict[str, Any]:
        """Return what a token of the next user says."""
        self._number += 1
        now_s = int(time.time())
        return {
            "iss": ISSUER,
            "aud": [AUDIENCE],
            "sub": f"user-{self._number}",
            "email": f"user-{self._number}@example.com",
            "email_verified": True,
            "typ": "Bearer",
            "azp": "web",
            "scope": "openid profile email",
            "iat": now_s,
            "exp": now_s + LIFETIME_S,
            "jti": f"{self._number:032x}",
            "realm_access": {"roles": ["admin", "offline_access", "uma_authorization", "default-roles-demo"]},
        }

    async def _introspect(self, _: Request) -> Response:
        await asyncio.sleep(self.delay_s)
        return JSONResponse(self.claims() | {"active": True, "token_type": "Bearer"})

    async def _serve(self, _: Request) -> Response:
        return JSONResponse(self.jwks)


def repeat(body: Body) -> Callable[[], Body]:
    """Return what gives the same call each time."""
    return lambda: body


def cycle(bodies: list[Body]) -> Callable[[], Body]:
    """Return what gives one after the other; it must not come to its end, or nothing is new any more."""
    source = iter(bodies)
    return lambda: next(source)


def wrap(bodies: list[Body]) -> Callable[[], Body]:
    """Return what gives one after the other, and then begins anew."""
    source = itertools.cycle(bodies)
    return lambda: next(source)


class ZipfTokens:
    """Gives calls by a Zipf law over many tokens, of which some are replaced by new ones as time goes by."""

    def __init__(self, bodies: list[Body], fresh: list[Body], *, seed: int = 1) -> None:
        self.bodies = bodies
        self._fresh = fresh
        self._order = zipf(len(bodies), seed=seed)
        self._source = random.Random(seed)  # noqa: S311 - load, no secret
        self._every_s = 60.0 * RENEWED_A_MINUTE / len(bodies)
        self._next_s = time.perf_counter() + self._every_s

    def __call__(self) -> Body:
        """Return the next call."""
        now_s = time.perf_counter()
        if now_s >= self._next_s and self._fresh:
            self.bodies[self._source.randrange(len(self.bodies))] = self._fresh.pop()
            self._next_s = now_s + self._every_s
        return self.bodies[next(self._order)]


def is_allow(message: bytes) -> bool:
    """Say whether an answer lets the request in: the quick way for answers that begin with an empty status."""
    if message[:2] == b"\n\0" and b"\x1a" in message:
        return True
    response = CheckResponse.FromString(message)
    return response.status.code == 0 and response.HasField("ok_response")


def path_of(rule: int, number: int) -> str:
    """Return a path that one of the other rules is for."""
    return f"/api/v{rule % 100 + 2}/area{rule}/{number}/items/{number}"


def rules_file(  # noqa: PLR0913 - each is a side of what is measured
    folder: Path, world: World, *, port: int, door: str, rules: int = 10, http_port: int = 0, extra: str = ""
) -> Path:
    """Write the rules file: the rule that is asked for among others, or prefixes and captures shared by very many."""
    others = "".join(
        f'  - {{name: r{n}, hosts: [{HOST}], paths: ["/api/v{n % 100 + 2}/area{n}/{{id}}/items/**"], methods: [GET], '
        "tokens_from: demo, require: {roles: admin}}\n"
        for n in range(rules - 1)
    )
    file = folder / "rules.yaml"
    file.write_text(
        f"""version: 1
providers:
  demo:
    preset: keycloak
    issuer: {ISSUER}
    audiences: [{AUDIENCE}]
    keys: {{jwks_url: "{world.jwks_url}"}}
    introspection:
      client_id: api
      client_secret: "${{env:BENCH_SECRET}}"
      endpoint: "{world.introspection_url}"
      cache: 1h
identity_headers: {{x-user: "{{sub}}", x-email: "{{email}}"}}
rules:
  - {{name: orders, hosts: [{HOST}], paths: ["/api/v1/orders/{{id}}"], methods: [GET], tokens_from: demo,
      require: {{roles: admin}}}}
{others}server:
  grpc: [{{address: "127.0.0.1:{port}"}}]
  http: {f'"127.0.0.1:{http_port}"' if http_port else "null"}
  door: {door}
{extra}"""
    )
    return file
