"""Mint the tokens of ``tokens.yaml``: good ones and such as only a careless reader takes.

The keys are made of words that stand below, so everybody has their private halves: nothing may ever trust them but a
server that the conformance suite is held to. JSON and signatures are put together by hand, since no library makes most
of what is needed here.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Literal

import yaml
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    SECP256R1,
    EllipticCurvePrivateKey,
    derive_private_key,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pydantic import BaseModel, ConfigDict

from tests.conformance.template import PLAIN, fill

FILE: Final = Path(__file__).with_name("tokens.yaml")
WORDS: Final = "authz conformance suite, worthless test key: "
KIDS: Final = {
    "main": "main-1",
    "edwards": "main-2",
    "encryption": "main-3",
    "partner": "partner-1",
    "stranger": "main-1",
}
_NOW: Final = re.compile(r"now([+-][0-9.]+)?")
_COORDINATE_BYTES: Final = 32

Change = Literal[
    "no_signature", "zero_signature", "der_signature", "flipped_signature", "other_payload",
    "two_segments", "four_segments", "five_segments", "padded", "plain_alphabet", "loose_bits",
]  # fmt: skip


class Recipe(BaseModel):
    """How a token is made.

    ``like`` is the token whose claims it begins with. ``key`` signs it: ``none`` leaves the signature
    empty, ``public`` takes the main public key for a shared secret. ``tail`` and ``header_tail`` are raw JSON members
    written after the others, ``payload_tail`` stands after the whole object; ``payload_text`` and ``header_text`` are
    written instead. ``change`` is what becomes of the finished token, ``text`` is the whole token.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    like: str | None = None
    key: Literal["main", "edwards", "encryption", "partner", "stranger", "none", "public"] = "main"
    header: dict[str, Any] = {}
    claims: dict[str, Any] = {}
    tail: str = ""
    header_tail: str = ""
    payload_tail: str = ""
    header_text: str | None = None
    payload_text: str | None = None
    change: Change | None = None
    text: str | None = None


def private_key(name: str) -> EllipticCurvePrivateKey | Ed25519PrivateKey:
    """Return one of the worthless keys: always the same one for a name."""
    seed = hashlib.sha256(f"{WORDS}{name}".encode()).digest()
    if name == "edwards":
        return Ed25519PrivateKey.from_private_bytes(seed)
    return derive_private_key(int.from_bytes(seed, "big"), SECP256R1())


def public_jwk(name: str) -> dict[str, str]:
    """Return the public half of a key as a JWK (RFC 7517), as far as it identifies the key."""
    key = private_key(name)
    if isinstance(key, Ed25519PrivateKey):
        octets = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        return {"kid": KIDS[name], "kty": "OKP", "crv": "Ed25519", "x": _encode(octets)}
    point = key.public_key().public_numbers()
    x, y = (_encode(number.to_bytes(_COORDINATE_BYTES, "big")) for number in (point.x, point.y))
    return {"kid": KIDS[name], "kty": "EC", "crv": "P-256", "x": x, "y": y}


def read_recipes() -> dict[str, Recipe]:
    """Return the recipes of ``tokens.yaml`` by name."""
    raw = yaml.safe_load(FILE.read_text())
    return {name: Recipe.model_validate(its) for name, its in raw.items()}


def mint_all(*, now_s: float) -> dict[str, str]:
    """Return every token by name, as of a moment in seconds since 1970."""
    recipes = read_recipes()
    return {name: mint(recipe, recipes, now_s=now_s) for name, recipe in recipes.items()}


def mint(recipe: Recipe, recipes: Mapping[str, Recipe], *, now_s: float) -> str:
    """Return one token."""
    if recipe.text is not None:
        return recipe.text
    kinds = {**PLAIN, "jwk": public_jwk}
    usual = {"alg": _algorithm(recipe.key), "typ": "JWT", "kid": KIDS.get(recipe.key, KIDS["main"])}
    header, claims = _without_null(usual | recipe.header), _without_null(_all_claims(recipe, recipes))
    segments = [
        _segment(fill(header, kinds), tail=fill(recipe.header_tail, kinds), text=recipe.header_text),
        _segment(
            _with_times(fill(claims, kinds), now_s),
            tail=fill(recipe.tail, kinds),
            text=recipe.payload_text,
            after=recipe.payload_tail,
        ),
    ]
    segments.append(_encode(_sign(".".join(segments).encode(), recipe.key)))
    if recipe.change is not None:
        segments = _CHANGES[recipe.change](segments)
    return ".".join(segments)


def _all_claims(recipe: Recipe, recipes: Mapping[str, Recipe]) -> dict[str, Any]:
    begun = {} if recipe.like is None else _all_claims(recipes[recipe.like], recipes)
    return begun | recipe.claims


def _without_null(members: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in members.items() if value is not None}


def _with_times(value: Any, now_s: float) -> Any:
    if isinstance(value, dict):
        return {name: _with_times(its, now_s) for name, its in value.items()}
    found = _NOW.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        return value
    shift = found[1] or "0"
    return int(now_s) + (float(shift) if "." in shift else int(shift))


def _segment(members: Mapping[str, Any], *, tail: str, text: str | None, after: str = "") -> str:
    if text is None:
        text = json.dumps(members, separators=(",", ":"))
        if tail:
            text = f"{text[:-1]},{tail}}}"
    return _encode((text + after).encode())


def _algorithm(key: str) -> str:
    return {"edwards": "EdDSA", "none": "none", "public": "HS256"}.get(key, "ES256")


def _sign(message: bytes, name: str) -> bytes:
    if name == "none":
        return b""
    if name == "public":
        known = private_key("main").public_key()
        secret = known.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        return hmac.digest(secret, message, "sha256")
    key = private_key(name)
    if isinstance(key, Ed25519PrivateKey):
        return key.sign(message)
    # RFC 7518 §3.4: both numbers, in as many bytes as the curve's.
    return b"".join(
        number.to_bytes(_COORDINATE_BYTES, "big") for number in decode_dss_signature(key.sign(message, ECDSA(SHA256())))
    )


def _encode(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()


def _decode(segment: str) -> bytes:
    return base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))


def _change_signature(change: Callable[[str], str]) -> Callable[[list[str]], list[str]]:
    return lambda segments: [*segments[:2], change(segments[2])]


def _sign_as_der(segments: list[str]) -> list[str]:
    key = private_key("main")
    if isinstance(key, Ed25519PrivateKey):
        raise TypeError("the main key is one of P-256")
    return [*segments[:2], _encode(key.sign(".".join(segments[:2]).encode(), ECDSA(SHA256())))]


def _flip(signature: str) -> str:
    octets = _decode(signature)
    return _encode(bytes([octets[0] ^ 1]) + octets[1:])


def _loosen(signature: str) -> str:
    """Set a bit of the last character that stands for none of the bytes (RFC 4648 §3.5)."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return signature[:-1] + alphabet[alphabet.index(signature[-1]) | 1]


def _give_to_root(segments: list[str]) -> list[str]:
    claims = json.loads(_decode(segments[1])) | {"sub": "root"}
    return [segments[0], _encode(json.dumps(claims).encode()), segments[2]]


_CHANGES: Final[Mapping[str, Callable[[list[str]], list[str]]]] = {
    "no_signature": _change_signature(lambda _: ""),
    "zero_signature": _change_signature(lambda _: _encode(bytes(2 * _COORDINATE_BYTES))),
    "der_signature": _sign_as_der,
    "flipped_signature": _change_signature(_flip),
    "other_payload": _give_to_root,
    "two_segments": lambda segments: segments[:2],
    "four_segments": lambda segments: [*segments, segments[2]],
    "five_segments": lambda segments: [*segments, *segments[1:]],
    "padded": _change_signature(lambda signature: f"{signature}=="),
    "plain_alphabet": _change_signature(lambda signature: f"+{signature[1:]}"),
    "loose_bits": _change_signature(_loosen),
}
