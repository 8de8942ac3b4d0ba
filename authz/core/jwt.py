"""A signed JWT in compact form: split it strictly, choose the key, verify the signature (RFC 7515, 7519, 8725).

* The operator's list of algorithms decides, never the token; ``none`` is in no list (RFC 8725 §3.1).
* A key comes from the provider's :class:`~authz.core.jwk.KeySet` only. ``jwk jku x5u x5c x5t`` of the token are never
  looked at (RFC 8725 §3.10).
* Each key is bound to its algorithms, so that a signature of one kind is never tried with a key of another.
* Every ``crit`` is refused: we understand no extension (RFC 7515 §4.1.11). So is ``b64`` (RFC 7797).

What the claims say is judged by :mod:`authz.core.claims`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from jwt.algorithms import Algorithm, ECAlgorithm, HMACAlgorithm, OKPAlgorithm, RSAAlgorithm, RSAPSSAlgorithm

from authz.core.base64url import parse_base64url
from authz.core.jwk import Key, KeySet
from authz.core.strictjson import parse_object
from authz.model import Claims, Expectation, Reason, Rejected

MAX_TOKEN_BYTES: Final = 16_384
"""Keycloak tokens with hundreds of roles stay below; more would not fit common header limits beside cookies."""

MAX_HEADER_BYTES: Final = 2_048
"""Of the decoded header. Longer ones carry certificates or keys, which we would not look at."""

MAX_KEYS_TRIED: Final = 16
"""Bound on the signatures verified for one token, where its ``kid`` does not name one key."""

_JWS_DOTS: Final = 2
_JWE_DOTS: Final = 4

_ALGORITHMS: Final[Mapping[str, Algorithm]] = {
    "RS256": RSAAlgorithm(RSAAlgorithm.SHA256),
    "RS384": RSAAlgorithm(RSAAlgorithm.SHA384),
    "RS512": RSAAlgorithm(RSAAlgorithm.SHA512),
    "PS256": RSAPSSAlgorithm(RSAPSSAlgorithm.SHA256),
    "PS384": RSAPSSAlgorithm(RSAPSSAlgorithm.SHA384),
    "PS512": RSAPSSAlgorithm(RSAPSSAlgorithm.SHA512),
    "ES256": ECAlgorithm(ECAlgorithm.SHA256),
    "ES384": ECAlgorithm(ECAlgorithm.SHA384),
    "ES512": ECAlgorithm(ECAlgorithm.SHA512),
    "EdDSA": OKPAlgorithm(),
    "HS256": HMACAlgorithm(HMACAlgorithm.SHA256),
    "HS384": HMACAlgorithm(HMACAlgorithm.SHA384),
    "HS512": HMACAlgorithm(HMACAlgorithm.SHA512),
}
"""Curves are not named here: a key's own ``algorithms`` bind it (``ES256`` stands on P-256 keys only)."""

SYMMETRIC: Final = frozenset({"HS256", "HS384", "HS512"})
ASYMMETRIC: Final = frozenset(_ALGORITHMS) - SYMMETRIC


@dataclass(frozen=True, slots=True, kw_only=True)
class Jwt:
    """A token taken apart, and nothing proved yet.

    ``type`` is the ``typ`` header in lower case without ``application/``, empty where there is none.
    """

    algorithm: str
    kid: str | None
    type: str
    claims: Claims = field(repr=False)
    signing_input: bytes = field(repr=False)
    signature: bytes = field(repr=False)


def looks_like_jwt(token: str) -> bool:
    """Say whether a token is to be read as a JWT: three segments (JWS), or five (JWE, which is then refused)."""
    return token.count(".") in {_JWS_DOTS, _JWE_DOTS}


def parse_jwt(token: str) -> Jwt:
    """Take a compact JWS apart (RFC 7515 §7.1): strict base64url, strict JSON, caps on every part.

    Nothing is proved: of the result only ``iss`` may be used, to choose among providers, before :func:`verify_jwt`.

    Raises:
        Rejected: JWT_TOO_LARGE, JWT_ENCRYPTED, JWT_MALFORMED, JWT_HEADER, JWT_CRIT, JWT_PAYLOAD.

    """
    header, payload, signing_input, signature = _parse_segments(token)
    return Jwt(
        algorithm=_parse_algorithm(header),
        kid=_parse_kid(header),
        type=_parse_type(header),
        claims=parse_object(payload, reason=Reason.JWT_PAYLOAD),
        signing_input=signing_input,
        signature=signature,
    )


def verify_jwt(jwt: Jwt, keys: KeySet, expectation: Expectation) -> Key:
    """Verify the signature by one of the provider's keys and return that key.

    Not checked: any claim.

    Raises:
        Rejected: JWT_ALGORITHM or JWT_TYPE for what the provider's expectation does not list; JWT_UNKNOWN_KEY where
            the set names its keys, none has the token's ``kid`` and none without name holds, so that a newer set
            might know it; JWT_KEY_MISMATCH where the key is there, but for another algorithm; JWT_SIGNATURE.

    """
    algorithm = _ALGORITHMS.get(jwt.algorithm)
    if algorithm is None or jwt.algorithm not in expectation.algorithms:
        raise Rejected(Reason.JWT_ALGORITHM, f"`{ascii(jwt.algorithm)[1:-1][:16]}` is not in the provider's list")
    if jwt.type not in expectation.header_types:
        raise Rejected(Reason.JWT_TYPE, f"the header's `typ` is `{ascii(jwt.type)[1:-1][:32]}`")
    candidates = [key for key in keys.keys if jwt.kid is None or key.kid is None or key.kid == jwt.kid]
    candidates.sort(key=lambda key: key.kid != jwt.kid)
    fitting = [key for key in candidates if jwt.algorithm in key.algorithms][:MAX_KEYS_TRIED]
    for key in fitting:
        if algorithm.verify(jwt.signing_input, key.key, jwt.signature):
            return key
    if _is_unknown(jwt.kid, keys):
        raise Rejected(Reason.JWT_UNKNOWN_KEY)
    raise Rejected(Reason.JWT_SIGNATURE if fitting else Reason.JWT_KEY_MISMATCH)


def _is_unknown(kid: str | None, keys: KeySet) -> bool:
    """Say whether the set names its keys and this ``kid`` is not among them."""
    kids = {key.kid for key in keys.keys}
    return kid is not None and kid not in kids and kids != {None}


def _parse_segments(token: str) -> tuple[dict[str, Any], bytes, bytes, bytes]:
    """Return header, payload, signing input and signature."""
    if len(token) > MAX_TOKEN_BYTES:
        raise Rejected(Reason.JWT_TOO_LARGE)
    dots = token.count(".")
    if dots == _JWE_DOTS:
        raise Rejected(Reason.JWT_ENCRYPTED)
    if dots != _JWS_DOTS:
        raise Rejected(Reason.JWT_MALFORMED, f"{dots + 1} segments")
    signed, _, signature = token.rpartition(".")
    header, _, payload = signed.partition(".")
    if len(header) * 3 // 4 > MAX_HEADER_BYTES:
        raise Rejected(Reason.JWT_TOO_LARGE, "the header alone is too large")
    try:
        octets = parse_base64url(header), parse_base64url(payload), parse_base64url(signature)
    except ValueError:
        raise Rejected(Reason.JWT_MALFORMED, "not base64url") from None
    members = parse_object(octets[0], reason=Reason.JWT_HEADER)
    _check_extensions(members)
    return members, octets[1], signed.encode("ascii"), octets[2]


def _check_extensions(header: Mapping[str, Any]) -> None:
    if "crit" in header:
        raise Rejected(Reason.JWT_CRIT)
    if "enc" in header or "zip" in header:
        raise Rejected(Reason.JWT_ENCRYPTED)
    if "b64" in header:
        raise Rejected(Reason.JWT_HEADER, "`b64` is not supported")


def _parse_algorithm(header: Mapping[str, Any]) -> str:
    algorithm = header.get("alg")
    if not isinstance(algorithm, str) or not algorithm:
        raise Rejected(Reason.JWT_HEADER, "`alg` is missing or no text")
    return algorithm


def _parse_kid(header: Mapping[str, Any]) -> str | None:
    if "kid" not in header:
        return None
    kid = header["kid"]
    if not isinstance(kid, str):
        raise Rejected(Reason.JWT_HEADER, "`kid` is no text")
    return kid


def _parse_type(header: Mapping[str, Any]) -> str:
    """Return the media type without its tree (RFC 7515 §4.1.9). An empty one is not the same as none."""
    if "typ" not in header:
        return ""
    kind = header["typ"]
    name = kind.lower().removeprefix("application/") if isinstance(kind, str) and kind.isascii() else ""
    if not name:
        raise Rejected(Reason.JWT_HEADER, "`typ` is no media type")
    return name
