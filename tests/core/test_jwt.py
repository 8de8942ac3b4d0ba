"""Compact JWS: taken apart strictly, the key chosen by us, the signature bound to its key."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jwt as pyjwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from authz.core.base64url import parse_base64url, render_base64url
from authz.core.jwk import Key, KeySet, key_set_from_pem, key_set_from_secret
from authz.core.jwt import (
    ASYMMETRIC,
    MAX_HEADER_BYTES,
    MAX_KEYS_TRIED,
    MAX_TOKEN_BYTES,
    SYMMETRIC,
    looks_like_jwt,
    parse_jwt,
    verify_jwt,
)
from authz.model import Expectation, Reason, Rejected, Secret

SECRET = "s" * 64
PRIVATE_KEYS: dict[str, Any] = {
    "RSA": rsa.generate_private_key(65_537, 2048),
    "P-256": ec.generate_private_key(ec.SECP256R1()),
    "P-384": ec.generate_private_key(ec.SECP384R1()),
    "P-521": ec.generate_private_key(ec.SECP521R1()),
    "Ed25519": ed25519.Ed25519PrivateKey.generate(),
    "Ed448": ed448.Ed448PrivateKey.generate(),
    "other P-256": ec.generate_private_key(ec.SECP256R1()),
}
SIGNERS = [
    *((f"{family}{size}", "RSA") for family in ("RS", "PS") for size in (256, 384, 512)),
    ("ES256", "P-256"),
    ("ES384", "P-384"),
    ("ES512", "P-521"),
    ("EdDSA", "Ed25519"),
    ("EdDSA", "Ed448"),
    ("HS256", "secret"),
    ("HS384", "secret"),
    ("HS512", "secret"),
]
CLAIMS = {"iss": "https://idp.example", "sub": "alice", "exp": 2_000_000_000, "n": "\u00e9"}
EXPECTATION = Expectation(issuer="https://idp.example", audiences=None, algorithms=ASYMMETRIC | SYMMETRIC)


def _keys(name: str, kid: str | None = None) -> KeySet:
    if name == "secret":
        return key_set_from_secret(Secret(SECRET), SYMMETRIC)
    pem = PRIVATE_KEYS[name].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    (key,) = key_set_from_pem(pem).keys
    return _set(replace(key, kid=kid))


def _set(*keys: Key) -> KeySet:
    return KeySet(keys=keys, thumbprints=frozenset(key.thumbprint for key in keys))


def _sign(algorithm: str = "ES256", name: str = "P-256", **header: Any) -> str:
    key = SECRET if name == "secret" else PRIVATE_KEYS[name]
    return pyjwt.encode(CLAIMS, key, algorithm=algorithm, headers=header or None)


def _token(header: object, payload: object = CLAIMS, signature: bytes = b"x" * 64) -> str:
    """Return a token whose signature is nothing, of any header and payload."""
    parts = (part if isinstance(part, bytes) else json.dumps(part).encode() for part in (header, payload))
    return ".".join((*map(render_base64url, parts), render_base64url(signature)))


def _refused(action: Callable[..., object], *args: object) -> Reason:
    with pytest.raises(Rejected) as caught:
        action(*args)
    return caught.value.reason


ES256 = _sign()
ES256_KEYS = _keys("P-256")


# --- taking apart -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("token", "is_jwt"),
    [
        *(("", False), ("a", False), ("a.b", False), ("a.b.c", True), ("a.b.c.d", False), ("a.b.c.d.e", True)),
        *(("..", True), ("....", True), (".....", False)),
    ],
)
def test_three_segments_or_five_are_never_opaque(token: str, is_jwt: bool) -> None:  # noqa: FBT001 - a table's column
    assert looks_like_jwt(token) is is_jwt


def test_a_token_is_taken_apart() -> None:
    jwt = parse_jwt(_sign(kid="one", typ="application/AT+jwt"))
    assert (jwt.algorithm, jwt.kid, jwt.type) == ("ES256", "one", "at+jwt")
    assert jwt.claims == CLAIMS
    assert len(jwt.signature) == 64
    assert jwt.signing_input.count(b".") == 1


def test_a_repr_shows_no_token() -> None:
    jwt = parse_jwt(ES256)
    assert "alice" not in repr(jwt)
    assert ES256[:20] not in repr(jwt)


@pytest.mark.parametrize(
    ("header", "kid", "kind"),
    [
        ({}, None, ""),
        ({"kid": ""}, "", ""),
        ({"kid": "\u00e9"}, "\u00e9", ""),
        ({"typ": "JWT"}, None, "jwt"),
        ({"typ": "Application/Jwt"}, None, "jwt"),
        ({"typ": "at+JWT"}, None, "at+jwt"),
        ({"typ": "text/jwt"}, None, "text/jwt"),
        ({"jku": "https://x", "jwk": {}, "x5u": "https://x", "x5c": [], "cty": "x", "new": 1}, None, ""),
    ],
)
def test_headers_that_are_read(header: dict[str, Any], kid: str | None, kind: str) -> None:
    jwt = parse_jwt(_token({"alg": "ES256"} | header))
    assert (jwt.kid, jwt.type) == (kid, kind)


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        pytest.param("", Reason.JWT_MALFORMED, id="nothing"),
        pytest.param("a.b", Reason.JWT_MALFORMED, id="two segments"),
        pytest.param("a.b.c.d", Reason.JWT_MALFORMED, id="four segments"),
        pytest.param("a.b.c.d.e", Reason.JWT_ENCRYPTED, id="five segments"),
        pytest.param("a.b.c.d.e.f", Reason.JWT_MALFORMED, id="six segments"),
        pytest.param("..", Reason.JWT_HEADER, id="three empty segments"),
        pytest.param("\u00e9" + ES256[1:], Reason.JWT_MALFORMED, id="header not ascii"),
        pytest.param(ES256.replace(".", ".\u00e9", 1), Reason.JWT_MALFORMED, id="payload not ascii"),
        pytest.param(ES256 + "=", Reason.JWT_MALFORMED, id="padding"),
        pytest.param(ES256 + "\n", Reason.JWT_MALFORMED, id="line break"),
        pytest.param(ES256 + "AAA", Reason.JWT_MALFORMED, id="a length that no base64url has"),
        pytest.param(" " + ES256, Reason.JWT_MALFORMED, id="space before"),
        pytest.param(_token(b"", {}), Reason.JWT_HEADER, id="empty header"),
        pytest.param(_token([]), Reason.JWT_HEADER, id="header is a list"),
        pytest.param(_token(b'{"alg":"ES256","alg":"ES256"}'), Reason.JWT_HEADER, id="alg twice"),
        pytest.param(_token({"alg": "ES256"}, b""), Reason.JWT_PAYLOAD, id="empty payload"),
        pytest.param(_token({"alg": "ES256"}, []), Reason.JWT_PAYLOAD, id="payload is a list"),
        pytest.param(_token({"alg": "ES256"}, b'{"sub":"a","sub":"b"}'), Reason.JWT_PAYLOAD, id="sub twice"),
        pytest.param(_token({"alg": "ES256"}, b'{"exp":NaN}'), Reason.JWT_PAYLOAD, id="nan"),
        pytest.param(_token({"alg": "ES256"}, b'{"sub":"\xff"}'), Reason.JWT_PAYLOAD, id="payload not utf-8"),
        pytest.param(_token({"alg": "ES256"}, ES256.encode()), Reason.JWT_PAYLOAD, id="a token in a token"),
        pytest.param(_token({}), Reason.JWT_HEADER, id="no alg"),
        pytest.param(_token({"alg": None}), Reason.JWT_HEADER, id="alg null"),
        pytest.param(_token({"alg": ""}), Reason.JWT_HEADER, id="alg empty"),
        pytest.param(_token({"alg": ["ES256"]}), Reason.JWT_HEADER, id="alg a list"),
        pytest.param(_token({"alg": "ES256", "kid": None}), Reason.JWT_HEADER, id="kid null"),
        pytest.param(_token({"alg": "ES256", "kid": 7}), Reason.JWT_HEADER, id="kid a number"),
        pytest.param(_token({"alg": "ES256", "typ": None}), Reason.JWT_HEADER, id="typ null"),
        pytest.param(_token({"alg": "ES256", "typ": ""}), Reason.JWT_HEADER, id="typ empty"),
        pytest.param(_token({"alg": "ES256", "typ": "application/"}), Reason.JWT_HEADER, id="typ without a name"),
        pytest.param(_token({"alg": "ES256", "typ": "\u212awt"}), Reason.JWT_HEADER, id="typ that would fold to ascii"),
        pytest.param(_token({"alg": "ES256", "typ": ["JWT"]}), Reason.JWT_HEADER, id="typ a list"),
        pytest.param(_token({"alg": "ES256", "b64": True}), Reason.JWT_HEADER, id="b64"),
        pytest.param(_token({"alg": "ES256", "crit": []}), Reason.JWT_CRIT, id="crit empty"),
        pytest.param(_token({"alg": "ES256", "crit": ["b64"], "b64": False}), Reason.JWT_CRIT, id="crit b64"),
        pytest.param(_token({"alg": "ES256", "crit": None}), Reason.JWT_CRIT, id="crit null"),
        pytest.param(_token({"alg": "dir", "enc": "A128GCM"}), Reason.JWT_ENCRYPTED, id="enc in three segments"),
        pytest.param(_token({"alg": "ES256", "zip": "DEF"}), Reason.JWT_ENCRYPTED, id="compressed"),
    ],
)
def test_what_is_no_compact_jws_is_refused(token: str, reason: Reason) -> None:
    assert _refused(lambda: parse_jwt(token)) is reason


def test_the_sizes_are_bounded_at_their_limits() -> None:
    header = render_base64url(b'{"alg":"ES256"}')
    room = MAX_TOKEN_BYTES - len(header) - 2
    room -= room % 4
    payload = render_base64url(b'{"a":"' + b"x" * (room * 3 // 4 - 8) + b'"}')
    signature = "A" * (MAX_TOKEN_BYTES - len(header) - len(payload) - 2)
    token = f"{header}.{payload}.{signature}"
    assert len(token) == MAX_TOKEN_BYTES
    assert parse_jwt(token).claims
    assert _refused(lambda: parse_jwt(token + "A")) is Reason.JWT_TOO_LARGE
    assert _refused(lambda: parse_jwt("." * 1_000_000)) is Reason.JWT_TOO_LARGE


def test_the_header_is_bounded_at_its_limit() -> None:
    start = len(b'{"alg":"ES256","x":""}')

    def with_header(size: int) -> str:
        return _token(b'{"alg":"ES256","x":"' + b"x" * (size - start) + b'"}')

    assert parse_jwt(with_header(MAX_HEADER_BYTES))
    assert _refused(lambda: parse_jwt(with_header(MAX_HEADER_BYTES + 1))) is Reason.JWT_TOO_LARGE


def test_the_depth_is_bounded_at_its_limit() -> None:
    assert parse_jwt(_token({"alg": "ES256"}, b'{"a":' * 31 + b"{}" + b"}" * 31))
    assert (
        _refused(lambda: parse_jwt(_token({"alg": "ES256"}, b'{"a":' * 32 + b"{}" + b"}" * 32))) is Reason.JWT_PAYLOAD
    )


def test_every_cut_of_a_token_is_refused() -> None:
    verify_jwt(parse_jwt(ES256), ES256_KEYS, EXPECTATION)
    for length in range(len(ES256)):
        with pytest.raises(Rejected):
            verify_jwt(parse_jwt(ES256[:length]), ES256_KEYS, EXPECTATION)


@pytest.mark.parametrize(
    "junk", [" ", "A", "AAAA", ".", "..", ".A", ",", "\0", "=", "\u00e9", "." + ES256, "," + ES256]
)
def test_junk_behind_a_token_is_refused(junk: str) -> None:
    with pytest.raises(Rejected):
        verify_jwt(parse_jwt(ES256 + junk), ES256_KEYS, EXPECTATION)


def test_every_changed_character_is_refused() -> None:
    for at in range(len(ES256)):
        changed = ES256[:at] + ("B" if ES256[at] != "B" else "C") + ES256[at + 1 :]
        with pytest.raises(Rejected):
            verify_jwt(parse_jwt(changed), ES256_KEYS, EXPECTATION)


_SEGMENT = st.text(max_size=12) | st.binary(max_size=24).map(render_base64url)
_HEADER = st.dictionaries(
    st.sampled_from(["alg", "kid", "typ", "crit", "b64", "enc", "jwk"]),
    st.none()
    | st.integers()
    | st.text(max_size=5)
    | st.sampled_from(["ES256", "RS256", "HS256", "EdDSA", "none", "JWT"]),
)


@given(
    st.lists(_SEGMENT, max_size=6).map(".".join) | st.builds(_token, _HEADER, st.just(CLAIMS), st.binary(max_size=66))
)
def test_only_rejected_escapes(token: str) -> None:
    with pytest.raises(Rejected):
        verify_jwt(parse_jwt(token), ES256_KEYS, EXPECTATION)


@given(st.sampled_from(SIGNERS), st.binary(max_size=140))
def test_only_rejected_escapes_for_any_signature(signer: tuple[str, str], signature: bytes) -> None:
    algorithm, name = signer
    with pytest.raises(Rejected) as caught:
        verify_jwt(parse_jwt(_token({"alg": algorithm}, CLAIMS, signature)), _keys(name), EXPECTATION)
    assert caught.value.reason is Reason.JWT_SIGNATURE


# --- verifying --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("algorithm", "name"), SIGNERS)
def test_each_algorithm_verifies_and_detects_a_change(algorithm: str, name: str) -> None:
    keys = _keys(name)
    jwt = parse_jwt(_sign(algorithm, name))
    assert verify_jwt(jwt, keys, EXPECTATION) is keys.keys[0]
    changed = replace(jwt, signing_input=jwt.signing_input[:-1])
    assert _refused(lambda: verify_jwt(changed, keys, EXPECTATION)) is Reason.JWT_SIGNATURE
    for signature in (b"", jwt.signature[:-1], jwt.signature + b"\0", bytes(len(jwt.signature))):
        changed = replace(jwt, signature=signature)
        assert _refused(verify_jwt, changed, keys, EXPECTATION) is Reason.JWT_SIGNATURE


@pytest.mark.parametrize(("algorithm", "name"), SIGNERS)
def test_a_key_verifies_no_other_algorithm(algorithm: str, name: str) -> None:
    """An attacker who signs with a public key as a secret, or by another scheme, finds no key at all."""
    jwt = parse_jwt(_sign(algorithm, name))
    for other, other_name in SIGNERS:
        if algorithm not in _keys(other_name).keys[0].algorithms:
            keys = _keys(other_name)
            assert _refused(verify_jwt, jwt, keys, EXPECTATION) is Reason.JWT_KEY_MISMATCH, other


def test_a_public_key_is_no_secret() -> None:
    """The classic confusion: HS256 with the text of the public key."""
    pem = PRIVATE_KEYS["RSA"].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    head, _, tail = _token({"alg": "HS256"}).rpartition(".")
    algorithm = pyjwt.algorithms.HMACAlgorithm(pyjwt.algorithms.HMACAlgorithm.SHA256)
    token = f"{head}.{render_base64url(algorithm.sign(head.encode(), pem))}"
    assert tail
    assert _refused(lambda: verify_jwt(parse_jwt(token), _keys("RSA"), EXPECTATION)) is Reason.JWT_KEY_MISMATCH


@pytest.mark.parametrize(
    "algorithm", ["none", "None", "NONE", "nOnE", "es256", "ES256K", "HS1", "A128KW", " ES256", "Ed25519"]
)
def test_an_algorithm_we_do_not_have_is_refused_even_if_listed(algorithm: str) -> None:
    expectation = replace(EXPECTATION, algorithms=EXPECTATION.algorithms | {algorithm})
    for signature in (b"", b"x" * 64):
        jwt = parse_jwt(_token({"alg": algorithm}, CLAIMS, signature))
        assert _refused(verify_jwt, jwt, ES256_KEYS, expectation) is Reason.JWT_ALGORITHM


def test_an_algorithm_that_is_not_listed_is_refused_though_the_signature_holds() -> None:
    jwt = parse_jwt(ES256)
    assert verify_jwt(jwt, ES256_KEYS, replace(EXPECTATION, algorithms=frozenset({"ES256"})))
    for algorithms in (frozenset({"ES384"}), frozenset[str]()):
        expectation = replace(EXPECTATION, algorithms=algorithms)
        assert _refused(verify_jwt, jwt, ES256_KEYS, expectation) is Reason.JWT_ALGORITHM


@pytest.mark.parametrize(
    ("typ", "types", "fits"),
    [
        ("JWT", {"", "jwt"}, True),
        (None, {"", "jwt"}, True),
        (None, {"at+jwt"}, False),
        ("JWT", {"at+jwt"}, False),
        ("at+jwt", {"at+jwt"}, True),
        ("application/at+JWT", {"at+jwt"}, True),
        ("logout+jwt", {"", "jwt", "at+jwt"}, False),
        ("secevent+jwt", {"", "jwt", "at+jwt"}, False),
        ("dpop+jwt", {"", "jwt", "at+jwt"}, False),
        ("JWT", set(), False),
    ],
)
def test_the_type_must_be_listed(typ: str | None, types: set[str], fits: bool) -> None:  # noqa: FBT001 - a table's column
    jwt = parse_jwt(_sign(typ=typ))
    expectation = replace(EXPECTATION, header_types=frozenset(types))
    if fits:
        assert verify_jwt(jwt, ES256_KEYS, expectation)
    else:
        assert _refused(lambda: verify_jwt(jwt, ES256_KEYS, expectation)) is Reason.JWT_TYPE


def test_a_refusal_shows_what_the_token_said_on_one_short_line() -> None:
    with pytest.raises(Rejected) as caught:
        verify_jwt(parse_jwt(_token({"alg": "x\n\u202e" + "y" * 999})), ES256_KEYS, EXPECTATION)
    assert caught.value.detail == "`x\\n\\u202eyyyyyyy` is not in the provider's list"


# --- choosing the key -------------------------------------------------------------------------------------------

_GOOD = ES256_KEYS.keys[0]
_BAD = _keys("other P-256").keys[0]
_RSA = _keys("RSA").keys[0]


@pytest.mark.parametrize(
    ("kid", "keys"),
    [
        pytest.param("a", [replace(_GOOD, kid="a")], id="by kid"),
        pytest.param("a", [replace(_BAD, kid="b"), replace(_GOOD, kid="a")], id="by kid among others"),
        pytest.param("a", [replace(_BAD, kid="a"), replace(_GOOD, kid="a")], id="two of one kid"),
        pytest.param("a", [replace(_RSA, kid="a"), replace(_GOOD, kid="a")], id="one kid for two types"),
        pytest.param("a", [_GOOD], id="key without kid"),
        pytest.param("a", [_BAD, _GOOD], id="keys without kid"),
        pytest.param("a", [replace(_BAD, kid="b"), _GOOD], id="key without kid beside another's"),
        pytest.param("a", [replace(_BAD, kid="a"), _GOOD], id="key without kid beside one of that kid"),
        pytest.param(None, [replace(_BAD, kid="a"), replace(_GOOD, kid="b")], id="token without kid"),
        pytest.param("", [replace(_GOOD, kid="")], id="the empty kid is a kid"),
        pytest.param(None, [*[_BAD] * (MAX_KEYS_TRIED - 1), _GOOD], id="the last key tried"),
        pytest.param(None, [*[_RSA] * 99, _GOOD], id="keys that do not fit do not count"),
        pytest.param("a", [*[_BAD] * 99, replace(_GOOD, kid="a")], id="the key of that kid is tried first"),
    ],
)
def test_the_key_is_found(kid: str | None, keys: list[Key]) -> None:
    jwt = replace(parse_jwt(ES256), kid=kid)
    assert verify_jwt(jwt, _set(*keys), EXPECTATION).key is _GOOD.key


@pytest.mark.parametrize(
    ("kid", "keys", "reason"),
    [
        pytest.param("a", [], Reason.JWT_UNKNOWN_KEY, id="no keys"),
        pytest.param(None, [], Reason.JWT_KEY_MISMATCH, id="no keys, no kid"),
        pytest.param("a", [replace(_GOOD, kid="b")], Reason.JWT_UNKNOWN_KEY, id="another kid"),
        pytest.param("a", [replace(_GOOD, kid="A")], Reason.JWT_UNKNOWN_KEY, id="another case"),
        pytest.param("", [replace(_GOOD, kid="b")], Reason.JWT_UNKNOWN_KEY, id="the empty kid is a kid"),
        pytest.param("a", [replace(_GOOD, kid="b"), _BAD], Reason.JWT_UNKNOWN_KEY, id="unnamed keys do not hold"),
        pytest.param("a", [replace(_GOOD, kid="b"), _RSA], Reason.JWT_UNKNOWN_KEY, id="unnamed keys do not fit"),
        pytest.param("a", [_BAD], Reason.JWT_SIGNATURE, id="a set without names"),
        pytest.param("a", [_RSA], Reason.JWT_KEY_MISMATCH, id="a set without names does not fit"),
        pytest.param(
            "a", [replace(_RSA, kid="a"), replace(_GOOD, kid="b")], Reason.JWT_KEY_MISMATCH, id="another type"
        ),
        pytest.param(
            "a",
            [replace(_GOOD, kid="a", algorithms=frozenset({"ES384"}))],
            Reason.JWT_KEY_MISMATCH,
            id="another algorithm",
        ),
        pytest.param("a", [replace(_BAD, kid="a"), replace(_GOOD, kid="b")], Reason.JWT_SIGNATURE, id="another's key"),
        pytest.param(None, [_RSA], Reason.JWT_KEY_MISMATCH, id="no kid, nothing fits"),
        pytest.param(None, [replace(_BAD, kid="a")], Reason.JWT_SIGNATURE, id="no kid, nothing holds"),
        pytest.param(None, [*[_BAD] * MAX_KEYS_TRIED, _GOOD], Reason.JWT_SIGNATURE, id="too many keys to try"),
    ],
)
def test_the_key_is_not_found(kid: str | None, keys: list[Key], reason: Reason) -> None:
    jwt = replace(parse_jwt(ES256), kid=kid)
    assert _refused(lambda: verify_jwt(jwt, _set(*keys), EXPECTATION)) is reason


def test_a_key_that_the_token_brings_along_is_never_used() -> None:
    attacker = PRIVATE_KEYS["other P-256"]
    point = attacker.public_key().public_numbers()
    jwk = {"kty": "EC", "crv": "P-256"} | {
        name: render_base64url(value.to_bytes(32, "big")) for name, value in (("x", point.x), ("y", point.y))
    }
    for header in (
        {"jwk": jwk},
        {"jku": "https://evil.example/jwks"},
        {"x5u": "https://evil.example/x5u"},
        {"x5c": ["AA"]},
    ):
        token = pyjwt.encode(CLAIMS, attacker, algorithm="ES256", headers=header)
        assert _refused(verify_jwt, parse_jwt(token), ES256_KEYS, EXPECTATION) is Reason.JWT_SIGNATURE


def test_a_der_signature_is_no_jws_signature() -> None:
    jwt = parse_jwt(ES256)
    der = pyjwt.utils.raw_to_der_signature(jwt.signature, ec.SECP256R1())
    assert _refused(lambda: verify_jwt(replace(jwt, signature=der), ES256_KEYS, EXPECTATION)) is Reason.JWT_SIGNATURE


def test_the_signature_covers_the_text_as_sent() -> None:
    """The same header in another spelling is another signing input."""
    head, payload, signature = ES256.split(".")
    spaced = render_base64url(parse_base64url(head).replace(b":", b": "))
    token = f"{spaced}.{payload}.{signature}"
    assert _refused(lambda: verify_jwt(parse_jwt(token), ES256_KEYS, EXPECTATION)) is Reason.JWT_SIGNATURE
