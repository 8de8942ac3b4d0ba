"""Public keys: a provider's JWKS document, the operator's PEM file or shared secret, as one :class:`KeySet`.

A key that cannot be used to verify is skipped with a word why, never an error: providers publish encryption keys and
key types of tomorrow beside the keys of today (RFC 7517 §5). Nothing here is ever read from a token.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    SECP384R1,
    SECP521R1,
    EllipticCurve,
    EllipticCurvePublicKey,
    EllipticCurvePublicNumbers,
)
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey, RSAPublicNumbers
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from authz.core.base64url import parse_base64url, render_base64url
from authz.core.strictjson import parse_object
from authz.model import ProviderError, Reason, Rejected, Secret

MIN_RSA_BITS: Final = 2_048
"""RFC 7518 §3.3 and §3.5."""

MAX_RSA_BITS: Final = 8_192
"""Larger moduli cost every check milliseconds, and nobody publishes them."""

MAX_KEYS: Final = 256
"""No provider publishes more; a document that does is not worth the time its keys take."""

_ROCA_PRIMES: Final = (11, 13, 17, 19, 37, 53, 61, 71, 73, 79, 97, 103, 107, 109, 127, 151, 157)
_ROCA_POWERS: Final = tuple(
    (prime, frozenset(pow(65_537, exponent, prime) for exponent in range(prime))) for prime in _ROCA_PRIMES
)
"""Moduli of one chip maker's generator are powers of 65537 modulo these, and can be factored (CVE-2017-15361)."""

PublicKey = RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey | Ed448PublicKey

_HASH_BYTES: Final[Mapping[str, int]] = {"HS256": 32, "HS384": 48, "HS512": 64}
_RSA_ALGORITHMS: Final = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})
_CURVES: Final[Mapping[str, tuple[type[EllipticCurve], int, str]]] = {
    "P-256": (SECP256R1, 32, "ES256"),
    "P-384": (SECP384R1, 48, "ES384"),
    "P-521": (SECP521R1, 66, "ES512"),
}
_CURVE_NAMES: Final[Mapping[str, str]] = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}
_EDWARDS: Final[Mapping[str, type[Ed25519PublicKey | Ed448PublicKey]]] = {
    "Ed25519": Ed25519PublicKey,
    "Ed448": Ed448PublicKey,
}
_PEM_BLOCK: Final = re.compile(r"-----BEGIN ([A-Z0-9 ]+)-----\s[^-]*-----END \1-----\s*")
_MAX_WORD_CHARS: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One key that may verify signatures by exactly these ``algorithms``.

    ``thumbprint`` is the SHA-256 of RFC 7638, base64url; for a secret it is the word ``secret``, since a digest of
    a guessable secret gives it away (RFC 7638 §7).
    """

    kid: str | None
    kty: str
    crv: str | None = None
    algorithms: frozenset[str]
    thumbprint: str
    key: PublicKey | bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySet:
    """A provider's keys. ``skipped`` says of each key not taken which one it was and why."""

    keys: tuple[Key, ...]
    thumbprints: frozenset[str]
    skipped: tuple[str, ...] = ()


def parse_key_set(raw: bytes) -> KeySet:
    """Read a JWKS document (RFC 7517 §5), keeping the keys for verification.

    Not checked: certificates (``x5c``, ``x5u``), which bind nothing here. The size is the caller's to bound.

    Raises:
        ProviderError: KEYS_UNAVAILABLE for no JSON object, no list of ``keys``, or no usable key among them.

    """
    try:
        members = parse_object(raw, reason=Reason.KEYS_UNAVAILABLE).get("keys")
    except Rejected as error:
        raise ProviderError(Reason.KEYS_UNAVAILABLE, f"the jwks document cannot be read: {error.detail}") from None
    if not isinstance(members, list):
        raise ProviderError(Reason.KEYS_UNAVAILABLE, "the jwks document has no list `keys`")
    keys: list[Key] = []
    skipped: list[str] = []
    for index, member in enumerate(members[:MAX_KEYS]):
        try:
            keys.append(_parse_key(member))
        except ValueError as error:
            skipped.append(f"{_name_of(index, member)}: {error}")
    if len(members) > MAX_KEYS:
        skipped.append(f"keys {MAX_KEYS} and on: more than {MAX_KEYS} keys")
    if not keys:
        why = "; ".join(skipped[:8]) or "it is empty"
        raise ProviderError(Reason.KEYS_UNAVAILABLE, f"the jwks document has no usable key: {why}")
    return _key_set(keys, skipped)


def key_set_from_pem(text: str) -> KeySet:
    """Read one or more PEM blocks, each a public key or a certificate (RFC 7468 §5, §13). Their keys have no ``kid``.

    Not checked: a certificate's dates, issuer and purpose. It is the operator's way to name a key.

    Raises:
        ValueError: with a message for the operator.

    """
    keys: list[Key] = []
    at = len(text) - len(text.lstrip())
    while at < len(text):
        block = _PEM_BLOCK.match(text, at)
        if block is None:
            raise ValueError("not pem: write whole blocks from `-----BEGIN` to `-----END`, and nothing between them")
        at = block.end()
        keys.append(_parse_pem_block(block[1], block[0].encode("utf-8")))
    if not keys:
        raise ValueError("no pem block: write a public key or a certificate")
    return _key_set(keys, ())


def key_set_from_secret(secret: Secret, algorithms: Iterable[str]) -> KeySet:
    """Make the one key of a shared secret, which must be as long as the longest hash named (RFC 7518 §3.2).

    Raises:
        ValueError: with a message for the operator, which never shows the secret.

    """
    try:
        octets = secret.reveal().encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("the secret is not valid utf-8") from None
    return _key_set_from_octets(octets, frozenset(algorithms))


def _key_set_from_octets(octets: bytes, algorithms: frozenset[str]) -> KeySet:
    if not algorithms or not algorithms <= _HASH_BYTES.keys():
        raise ValueError("a secret is for `HS256`, `HS384` and `HS512` only: name at least one of them and no other")
    least = max(_HASH_BYTES[name] for name in algorithms)
    if len(octets) < least:
        raise ValueError(f"the secret is too short: use at least {least} bytes for these algorithms")
    return _key_set([Key(kid=None, kty="oct", algorithms=algorithms, thumbprint="secret", key=octets)], ())


def _key_set(keys: list[Key], skipped: Iterable[str]) -> KeySet:
    return KeySet(keys=tuple(keys), thumbprints=frozenset(key.thumbprint for key in keys), skipped=tuple(skipped))


def _name_of(index: int, member: Any) -> str:
    kid = member.get("kid") if isinstance(member, dict) else None
    return f"key {index} {_word(kid)}" if isinstance(kid, str) else f"key {index}"


def _word(value: Any) -> str:
    """Quote what a provider wrote so that it cannot forge or flood a line of the log."""
    if value is None:
        return "missing"
    return f"`{ascii(value)[1:-1][:_MAX_WORD_CHARS]}`" if isinstance(value, str) else "no text"


def _parse_key(member: Any) -> Key:
    """Read one JWK. Raises ValueError with the word why it is of no use."""
    if not isinstance(member, dict):
        raise ValueError("no object")
    kid, algorithm = member.get("kid"), member.get("alg")
    if not isinstance(kid, str | None):
        raise ValueError("`kid` is no text")
    _check_purpose(member)
    public, algorithms = _parse_public_key(member)
    if algorithm is not None:
        if not isinstance(algorithm, str) or algorithm not in algorithms:
            raise ValueError(f"algorithm {_word(algorithm)} is not for such a key here")
        algorithms = frozenset({algorithm})
    return _key(public, kid=kid, algorithms=algorithms)


def _check_purpose(member: Mapping[str, Any]) -> None:
    use, operations = member.get("use"), member.get("key_ops")
    if use is not None and use != "sig":
        raise ValueError(f"use is {_word(use)}")
    if operations is not None and (not isinstance(operations, list) or "verify" not in operations):
        raise ValueError("`key_ops` lacks `verify`")
    if "d" in member:
        raise ValueError("private key")


def _parse_public_key(member: Mapping[str, Any]) -> tuple[PublicKey, frozenset[str]]:
    match member.get("kty"):
        case "RSA":
            return _parse_rsa(member), _RSA_ALGORITHMS
        case "EC":
            return _parse_ec(member)
        case "OKP":
            return _parse_okp(member), frozenset({"EdDSA"})
        case "oct":
            raise ValueError("symmetric key")
        case kty:
            raise ValueError(f"key type is {_word(kty)}")


def _parse_rsa(member: Mapping[str, Any]) -> RSAPublicKey:
    modulus = int.from_bytes(_octets(member, "n"), "big")
    exponent = int.from_bytes(_octets(member, "e"), "big")
    _check_modulus(modulus)
    try:
        return RSAPublicNumbers(exponent, modulus).public_key()
    except ValueError:
        raise ValueError("rsa numbers out of range") from None


def _check_modulus(modulus: int) -> None:
    bits = modulus.bit_length()
    if not MIN_RSA_BITS <= bits <= MAX_RSA_BITS:
        raise ValueError(f"rsa key of {bits} bits: use {MIN_RSA_BITS} to {MAX_RSA_BITS}")
    if all(modulus % prime in powers for prime, powers in _ROCA_POWERS):
        raise ValueError("rsa key of a broken generator (roca): make a new one")


def _parse_ec(member: Mapping[str, Any]) -> tuple[EllipticCurvePublicKey, frozenset[str]]:
    name = member.get("crv")
    if not isinstance(name, str) or name not in _CURVES:
        raise ValueError(f"curve is {_word(name)}")
    curve, size, algorithm = _CURVES[name]
    x, y = _octets(member, "x"), _octets(member, "y")
    if len(x) > size or len(y) > size:  # some providers drop leading zeros, against RFC 7518 §6.2.1.2
        raise ValueError("coordinates too long")
    try:
        public = EllipticCurvePublicNumbers(int.from_bytes(x, "big"), int.from_bytes(y, "big"), curve()).public_key()
    except ValueError:
        raise ValueError("point not on the curve") from None
    return public, frozenset({algorithm})


def _parse_okp(member: Mapping[str, Any]) -> Ed25519PublicKey | Ed448PublicKey:
    name = member.get("crv")
    if not isinstance(name, str) or name not in _EDWARDS:
        raise ValueError(f"curve is {_word(name)}")
    x = _octets(member, "x")
    try:
        return _EDWARDS[name].from_public_bytes(x)
    except ValueError:
        raise ValueError("coordinate of the wrong length") from None


def _octets(member: Mapping[str, Any], name: str) -> bytes:
    text = member.get(name)
    if not isinstance(text, str):
        raise ValueError(f"`{name}` is {_word(text)}")
    try:
        return parse_base64url(text)
    except ValueError:
        raise ValueError(f"`{name}` is no base64url") from None


def _parse_pem_block(label: str, block: bytes) -> Key:
    load = _PEM_LOADERS.get(label)
    if load is None:
        raise ValueError(f"pem block `{label}`: write a `PUBLIC KEY` or a `CERTIFICATE`")
    try:
        public = load(block)
    except UnsupportedAlgorithm:
        raise ValueError(f"pem block `{label}` holds a key of an unknown kind: {_KINDS}") from None
    except (ValueError, x509.InvalidVersion):
        raise ValueError(f"pem block `{label}` cannot be read: it is damaged or cut") from None
    match public:
        case RSAPublicKey():
            _check_modulus(public.public_numbers().n)
            return _key(public, kid=None, algorithms=_RSA_ALGORITHMS)
        case EllipticCurvePublicKey() if public.curve.name in _CURVE_NAMES:
            algorithm = _CURVES[_CURVE_NAMES[public.curve.name]][2]
            return _key(public, kid=None, algorithms=frozenset({algorithm}))
        case Ed25519PublicKey() | Ed448PublicKey():
            return _key(public, kid=None, algorithms=frozenset({"EdDSA"}))
        case _:
            raise ValueError(f"pem block `{label}` holds a key of the wrong kind: {_KINDS}")


def _load_certificate_key(block: bytes) -> object:
    return x509.load_pem_x509_certificate(block).public_key()


_PEM_LOADERS: Final[Mapping[str, Callable[[bytes], object]]] = {
    "PUBLIC KEY": load_pem_public_key,
    "CERTIFICATE": _load_certificate_key,
}
_KINDS: Final = "use rsa, ec on P-256, P-384 or P-521, ed25519 or ed448"


def _key(public: PublicKey, *, kid: str | None, algorithms: frozenset[str]) -> Key:
    members = _required_members(public)
    text = json.dumps(members, sort_keys=True, separators=(",", ":"))
    return Key(
        kid=kid,
        kty=members["kty"],
        crv=members.get("crv"),
        algorithms=algorithms,
        thumbprint=render_base64url(hashlib.sha256(text.encode("ascii")).digest()),
        key=public,
    )


def _required_members(public: PublicKey) -> dict[str, str]:
    """Return the members that RFC 7638 §3.2 and RFC 8037 §2 hash: one key has one thumbprint, however published."""
    if isinstance(public, RSAPublicKey):
        numbers = public.public_numbers()
        return {"kty": "RSA", "n": _integer(numbers.n), "e": _integer(numbers.e)}
    if isinstance(public, EllipticCurvePublicKey):
        name = _CURVE_NAMES[public.curve.name]
        size = _CURVES[name][1]
        point = public.public_numbers()
        return {"kty": "EC", "crv": name, "x": _integer(point.x, size), "y": _integer(point.y, size)}
    crv = "Ed25519" if isinstance(public, Ed25519PublicKey) else "Ed448"
    return {"kty": "OKP", "crv": crv, "x": render_base64url(public.public_bytes_raw())}


def _integer(value: int, size: int | None = None) -> str:
    return render_base64url(value.to_bytes(size or (value.bit_length() + 7) // 8, "big"))
