"""A small identity provider for demos and tests: discovery, JWKS, token, introspection, revocation.

It speaks like a Keycloak realm and believes every user name. Never for anything but loopback.
"""

from __future__ import annotations

import json
import secrets
import time
from typing import Any, Final
from urllib.parse import parse_qsl, unquote_plus

import jwt as pyjwt
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from jwt.algorithms import ECAlgorithm
from starlette.applications import Starlette
from starlette.authentication import AuthenticationError
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

REALM: Final = "/realms/demo"
AUDIENCE: Final = "orders-api"
LIFETIME_S: Final = 300
USERS: Final = {"alice": ["orders-reader"], "bob": ["guest"], "carol": ["orders-admin"]}


class DemoProvider:
    """One realm with one key. ``issuer`` is known once it is served."""

    def __init__(self) -> None:
        self.issuer = ""
        self.client_secret = secrets.token_urlsafe(24)
        self._opaque: dict[str, dict[str, Any]] = {}
        self.rotate()
        self.app = Starlette(
            routes=[
                Route(f"{REALM}/.well-known/openid-configuration", self._discovery),
                Route(f"{REALM}/jwks", self._jwks),
                Route(f"{REALM}/token", self._token, methods=["POST"]),
                Route(f"{REALM}/introspect", self._introspect, methods=["POST"]),
            ]
        )

    def rotate(self) -> None:
        """Sign with a new key from now on, and publish only that."""
        self._kid = secrets.token_hex(8)
        self._key = generate_private_key(SECP256R1())

    def serve_at(self, port: int) -> None:
        """Learn the own address."""
        self.issuer = f"http://127.0.0.1:{port}{REALM}"

    def claims(self, user: str, *, audience: str = AUDIENCE, lifetime_s: int = LIFETIME_S) -> dict[str, Any]:
        """Return what a token of this user says; a negative lifetime is one that is over."""
        now_s = int(time.time())
        return {
            "iss": self.issuer,
            "sub": user,
            "aud": [audience],
            "azp": "demo-cli",
            "typ": "Bearer",
            "iat": now_s + min(0, lifetime_s) - 1,
            "exp": now_s + lifetime_s,
            "jti": secrets.token_hex(8),
            "scope": "openid",
            "realm_access": {"roles": USERS.get(user, [])},
        }

    def mint(self, claims: dict[str, Any]) -> str:
        """Sign a JWT."""
        return pyjwt.encode(claims, self._key, algorithm="ES256", headers={"kid": self._kid})

    def mint_opaque(self, claims: dict[str, Any]) -> str:
        """Remember the claims under a random token."""
        token = secrets.token_urlsafe(32)
        self._opaque[token] = claims
        return token

    def revoke(self, token: str) -> None:
        """Forget an opaque token."""
        self._opaque.pop(token, None)

    async def _discovery(self, _: Request) -> Response:
        return JSONResponse(
            {
                "issuer": self.issuer,
                "jwks_uri": f"{self.issuer}/jwks",
                "token_endpoint": f"{self.issuer}/token",
                "introspection_endpoint": f"{self.issuer}/introspect",
            }
        )

    async def _jwks(self, _: Request) -> Response:
        member = json.loads(ECAlgorithm.to_jwk(self._key.public_key()))
        return JSONResponse({"keys": [member | {"kid": self._kid, "use": "sig", "alg": "ES256"}]})

    async def _token(self, request: Request) -> Response:
        form = await _form(request)
        user = form.get("username", "")
        if user not in USERS:
            return JSONResponse({"error": "invalid_grant"}, status_code=400)
        claims = self.claims(user)
        token = self.mint_opaque(claims) if form.get("kind") == "opaque" else self.mint(claims)
        if request.headers.get("accept") == "text/plain":
            return PlainTextResponse(token)
        return JSONResponse({"access_token": token, "token_type": "Bearer", "expires_in": LIFETIME_S})

    async def _introspect(self, request: Request) -> Response:
        form = await _form(request)
        try:
            self._check_client(request)
        except AuthenticationError:
            return JSONResponse({"error": "invalid_client"}, status_code=401)
        claims = self._opaque.get(form.get("token", ""))
        if claims is None or claims["exp"] <= time.time():
            return JSONResponse({"active": False})
        return JSONResponse({"active": True, "token_type": "Bearer", "client_id": claims["azp"], **claims})

    def _check_client(self, request: Request) -> None:
        basic = pyjwt.utils.base64url_decode(
            request.headers.get("authorization", "").removeprefix("Basic ").replace("+", "-").replace("/", "_")
        )
        client, _, secret = basic.decode("ascii", "replace").partition(":")
        if client != AUDIENCE or not secrets.compare_digest(unquote_plus(secret), self.client_secret):
            raise AuthenticationError


async def _form(request: Request) -> dict[str, str]:
    return dict(parse_qsl((await request.body()).decode("utf-8", "replace")))
