"""Keys: what is kept, what is skipped and why, and what a set may be made of."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import json
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa, x25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from authz.core.base64url import parse_base64url, render_base64url
from authz.core.jwk import MAX_KEYS, key_set_from_pem, key_set_from_secret, parse_key_set
from authz.model import ProviderError, Reason, Secret

RSA_ALGORITHMS = {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}

# RFC 7638 §3.1, with the thumbprint printed there.
RFC7638_N = (
    "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3ok"
    "njhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6"
    "qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8aw"
    "apJzKnqDKgw"
)
RSA_JWK = {"kty": "RSA", "n": RFC7638_N, "e": "AQAB"}
RFC7638_THUMBPRINT = "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"

# RFC 8037 A.2 and A.3.
ED25519_JWK = {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}
ED25519_THUMBPRINT = "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"


def _octets(value: int, size: int) -> str:
    return render_base64url(value.to_bytes(size, "big"))


def _ec_jwk(crv: str, private: int | None = None) -> dict[str, Any]:
    curve, size = {"P-256": (ec.SECP256R1(), 32), "P-384": (ec.SECP384R1(), 48), "P-521": (ec.SECP521R1(), 66)}[crv]
    key = ec.generate_private_key(curve) if private is None else ec.derive_private_key(private, curve)
    point = key.public_key().public_numbers()
    return {"kty": "EC", "crv": crv, "x": _octets(point.x, size), "y": _octets(point.y, size)}


EC_JWK = _ec_jwk("P-256")


def _document(*keys: Any) -> bytes:
    return json.dumps({"keys": keys}).encode()


# --- what is kept -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("jwk", "kty", "crv", "algorithms"),
    [
        (RSA_JWK, "RSA", None, RSA_ALGORITHMS),
        (RSA_JWK | {"alg": "PS384"}, "RSA", None, {"PS384"}),
        (
            RSA_JWK | {"use": "sig", "key_ops": ["verify"], "x5c": ["junk"], "x5u": "http://x", "new": {}},
            "RSA",
            None,
            RSA_ALGORITHMS,
        ),
        (
            RSA_JWK | {"n": render_base64url(b"\0" + parse_base64url(RFC7638_N))},
            "RSA",
            None,
            RSA_ALGORITHMS,
        ),
        (RSA_JWK | {"n": _octets(2**8191 + 1, 1024)}, "RSA", None, RSA_ALGORITHMS),
        (_ec_jwk("P-256"), "EC", "P-256", {"ES256"}),
        (_ec_jwk("P-384") | {"alg": "ES384"}, "EC", "P-384", {"ES384"}),
        (_ec_jwk("P-521"), "EC", "P-521", {"ES512"}),
        (ED25519_JWK, "OKP", "Ed25519", {"EdDSA"}),
        (
            {
                "kty": "OKP",
                "crv": "Ed448",
                "x": render_base64url(ed448.Ed448PrivateKey.generate().public_key().public_bytes_raw()),
            },
            "OKP",
            "Ed448",
            {"EdDSA"},
        ),
    ],
)
def test_a_key_is_bound_to_its_algorithms(jwk: dict[str, Any], kty: str, crv: str | None, algorithms: set[str]) -> None:
    keys = parse_key_set(_document(jwk | {"kid": "one"}))
    (key,) = keys.keys
    assert (key.kid, key.kty, key.crv) == ("one", kty, crv)
    assert key.algorithms == algorithms
    assert keys.thumbprints == {key.thumbprint}
    assert keys.skipped == ()


@pytest.mark.parametrize(("jwk", "thumbprint"), [(RSA_JWK, RFC7638_THUMBPRINT), (ED25519_JWK, ED25519_THUMBPRINT)])
def test_thumbprints_are_those_of_the_rfcs(jwk: dict[str, Any], thumbprint: str) -> None:
    assert parse_key_set(_document(jwk)).keys[0].thumbprint == thumbprint


def test_a_thumbprint_does_not_depend_on_how_a_key_is_published() -> None:
    private = ec.generate_private_key(ec.SECP521R1())
    while private.public_key().public_numbers().x.bit_length() > 512:
        private = ec.generate_private_key(ec.SECP521R1())
    point = private.public_key().public_numbers()
    whole = {"kty": "EC", "crv": "P-521", "x": _octets(point.x, 66), "y": _octets(point.y, 66)}
    cut = whole | {"x": render_base64url(point.x.to_bytes(66, "big").lstrip(b"\0")), "alg": "ES512", "kid": "b"}
    keys = parse_key_set(_document(whole, cut))
    pem = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    assert keys.thumbprints == key_set_from_pem(pem).thumbprints
    assert len(keys.keys) == 2


def test_a_repr_shows_no_key() -> None:
    key = key_set_from_secret(Secret("s" * 32), {"HS256"})
    assert "ssss" not in repr(key)


# --- what is skipped --------------------------------------------------------------------------------------------


def _roca_modulus() -> int:
    """Return a number with the fingerprint; it need not be a product of primes to be recognised."""
    return 65_537**128


SKIPPED = [
    pytest.param("text", "no object", id="no object"),
    pytest.param(EC_JWK | {"kid": 7}, "`kid` is no text", id="kid is a number"),
    pytest.param(EC_JWK | {"use": "enc"}, "use is `enc`", id="for encryption"),
    pytest.param(EC_JWK | {"use": ["sig"]}, "use is no text", id="use is a list"),
    pytest.param(EC_JWK | {"key_ops": ["sign", "encrypt"]}, "`key_ops` lacks `verify`", id="key_ops without verify"),
    pytest.param(EC_JWK | {"key_ops": "verify"}, "`key_ops` lacks `verify`", id="key_ops is no list"),
    pytest.param(EC_JWK | {"use": "sig", "key_ops": []}, "`key_ops` lacks `verify`", id="key_ops empty"),
    pytest.param(EC_JWK | {"d": "AAAA"}, "private key", id="private"),
    pytest.param({"kty": "oct", "k": "A" * 43}, "symmetric key", id="symmetric"),
    pytest.param({"kty": "AKP", "alg": "ML-DSA-44", "pub": "AA"}, "key type is `AKP`", id="type of tomorrow"),
    pytest.param({}, "key type is missing", id="no type"),
    pytest.param({"kty": 7}, "key type is no text", id="type is a number"),
    pytest.param(EC_JWK | {"alg": "ES384"}, "algorithm `ES384` is not for such a key here", id="alg of another curve"),
    pytest.param(EC_JWK | {"alg": "RS256"}, "algorithm `RS256` is not for such a key here", id="alg of another type"),
    pytest.param(EC_JWK | {"alg": "none"}, "algorithm `none` is not for such a key here", id="alg none"),
    pytest.param(
        RSA_JWK | {"alg": "RSA-OAEP"}, "algorithm `RSA-OAEP` is not for such a key here", id="alg for encryption"
    ),
    pytest.param(RSA_JWK | {"alg": "HS256"}, "algorithm `HS256` is not for such a key here", id="alg symmetric"),
    pytest.param(RSA_JWK | {"alg": ["RS256"]}, "algorithm no text is not for such a key here", id="alg is a list"),
    pytest.param(EC_JWK | {"crv": "secp256k1"}, "curve is `secp256k1`", id="another curve"),
    pytest.param(EC_JWK | {"crv": None}, "curve is missing", id="no curve"),
    pytest.param(EC_JWK | {"crv": ["P-256"]}, "curve is no text", id="curve is a list"),
    pytest.param(EC_JWK | {"x": None}, "`x` is missing", id="no x"),
    pytest.param(EC_JWK | {"y": 7}, "`y` is no text", id="y is a number"),
    pytest.param(EC_JWK | {"x": "===="}, "`x` is no base64url", id="x is no base64url"),
    pytest.param(EC_JWK | {"x": "A" * 44}, "coordinates too long", id="x too long"),
    pytest.param(EC_JWK | {"y": "A" * 44}, "coordinates too long", id="y too long"),
    pytest.param(EC_JWK | {"x": EC_JWK["y"]}, "point not on the curve", id="not on the curve"),
    pytest.param(ED25519_JWK | {"crv": "X25519"}, "curve is `X25519`", id="a curve for key agreement"),
    pytest.param(ED25519_JWK | {"crv": 1}, "curve is no text", id="okp curve is a number"),
    pytest.param(ED25519_JWK | {"x": "AAAA"}, "coordinate of the wrong length", id="okp too short"),
    pytest.param(
        RSA_JWK | {"n": _octets(2**2046 + 1, 256)}, "rsa key of 2047 bits: use 2048 to 8192", id="rsa just too short"
    ),
    pytest.param(
        RSA_JWK | {"n": _octets(2**8192 + 1, 1025)}, "rsa key of 8193 bits: use 2048 to 8192", id="rsa just too long"
    ),
    pytest.param(RSA_JWK | {"n": ""}, "rsa key of 0 bits: use 2048 to 8192", id="rsa empty"),
    pytest.param(
        RSA_JWK | {"n": _octets(_roca_modulus(), 257)},
        "rsa key of a broken generator (roca): make a new one",
        id="roca",
    ),
    pytest.param(RSA_JWK | {"e": "AQ"}, "rsa numbers out of range", id="exponent 1"),
    pytest.param(RSA_JWK | {"e": "AQAA"}, "rsa numbers out of range", id="exponent even"),
    pytest.param(RSA_JWK | {"e": RFC7638_N}, "rsa numbers out of range", id="exponent as large as the modulus"),
    pytest.param(RSA_JWK | {"e": None}, "`e` is missing", id="no exponent"),
    pytest.param(RSA_JWK | {"n": RFC7638_N + "="}, "`n` is no base64url", id="padding"),
]


@pytest.mark.parametrize(("jwk", "why"), SKIPPED)
def test_an_unusable_key_is_skipped_with_a_word_why_and_hides_no_other(jwk: Any, why: str) -> None:
    keys = parse_key_set(_document(jwk, ED25519_JWK))
    assert [key.crv for key in keys.keys] == ["Ed25519"]
    assert keys.skipped == (f"key 0: {why}",)


@pytest.mark.parametrize(("jwk", "why"), SKIPPED)
def test_a_set_of_only_unusable_keys_is_no_set(jwk: Any, why: str) -> None:
    with pytest.raises(ProviderError) as caught:
        parse_key_set(_document(jwk))
    assert caught.value.reason is Reason.KEYS_UNAVAILABLE
    assert why in caught.value.detail


def test_what_a_provider_wrote_cannot_forge_a_line_of_the_log() -> None:
    keys = parse_key_set(_document(ED25519_JWK, {"kid": "a\n\u202eb" + "x" * 100, "kty": "\u001b[2J" + "y" * 100}))
    assert keys.skipped == (f"key 1 `a\\n\\u202eb{'x' * 54}`: key type is `\\x1b[2J{'y' * 57}`",)


def test_the_number_of_keys_is_bounded() -> None:
    bad: list[Any] = [7] * (MAX_KEYS - 1)
    keys = parse_key_set(_document(*bad, ED25519_JWK))
    assert len(keys.keys) == 1
    assert len(keys.skipped) == MAX_KEYS - 1
    keys = parse_key_set(_document(ED25519_JWK, *bad, EC_JWK))
    assert len(keys.keys) == 1
    assert keys.skipped[-1] == f"keys {MAX_KEYS} and on: more than {MAX_KEYS} keys"


@pytest.mark.parametrize(
    ("raw", "detail"),
    [
        (b"", "the jwks document cannot be read: no strict json"),
        (b"[]", "the jwks document cannot be read: no json object"),
        (b"<html>", "the jwks document cannot be read: no strict json"),
        (b'{"keys": [], "keys": []}', "the jwks document cannot be read: no strict json"),
        (b"{}", "the jwks document has no list `keys`"),
        (b'{"keys": {}}', "the jwks document has no list `keys`"),
        (b'{"keys": null}', "the jwks document has no list `keys`"),
        (b'{"keys": []}', "the jwks document has no usable key: it is empty"),
    ],
)
def test_what_is_no_key_set_is_the_providers_fault(raw: bytes, detail: str) -> None:
    with pytest.raises(ProviderError) as caught:
        parse_key_set(raw)
    assert (caught.value.reason, caught.value.detail) == (Reason.KEYS_UNAVAILABLE, detail)


def test_every_cut_of_a_document_is_the_providers_fault() -> None:
    raw = _document(ED25519_JWK | {"kid": "a"})
    parse_key_set(raw)
    for length in range(len(raw)):
        with pytest.raises(ProviderError):
            parse_key_set(raw[:length])
    with pytest.raises(ProviderError):
        parse_key_set(raw + b"}")


_VALUES = st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.lists(st.text(max_size=8), max_size=2)
_WORDS = st.sampled_from(
    ["RSA", "EC", "OKP", "oct", "P-256", "Ed25519", "Ed448", "ES256", "EdDSA", "sig", "AQAB", "A" * 43]
)
_MEMBERS = st.sampled_from(["kty", "crv", "x", "y", "n", "e", "d", "k", "alg", "use", "key_ops", "kid"])


@given(st.lists(st.dictionaries(_MEMBERS, _WORDS | _VALUES, max_size=8) | _VALUES, max_size=3))
def test_only_a_provider_error_escapes_from_odd_keys(members: list[Any]) -> None:
    try:
        keys = parse_key_set(_document(*members))
    except ProviderError:
        return
    assert keys.keys


@given(st.sampled_from([RSA_JWK, EC_JWK, ED25519_JWK]), _MEMBERS, _WORDS | _VALUES)
def test_only_a_provider_error_escapes_from_a_key_with_one_odd_member(
    jwk: dict[str, Any], name: str, value: Any
) -> None:
    try:
        keys = parse_key_set(_document(jwk | {name: value}))
    except ProviderError:
        return
    assert len(keys.keys) == 1


@given(st.binary(max_size=64))
def test_only_a_provider_error_escapes_from_odd_documents(raw: bytes) -> None:
    with pytest.raises(ProviderError):
        parse_key_set(raw)


# --- pem --------------------------------------------------------------------------------------------------------


def _pem(public: Any) -> str:
    return str(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode())


def _certificate(private: Any) -> str:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "keys.example.com")])
    start = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(private.public_key())
    builder = builder.serial_number(1).not_valid_before(start).not_valid_after(start + dt.timedelta(days=1))
    return builder.sign(private, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


EC_PRIVATE = ec.generate_private_key(ec.SECP256R1())
RSA_PUBLIC = rsa.RSAPublicNumbers(65_537, int.from_bytes(parse_base64url(RFC7638_N), "big")).public_key()


@pytest.mark.parametrize(
    ("public", "algorithms"),
    [
        (RSA_PUBLIC, RSA_ALGORITHMS),
        (EC_PRIVATE.public_key(), {"ES256"}),
        (ed25519.Ed25519PrivateKey.generate().public_key(), {"EdDSA"}),
        (ed448.Ed448PrivateKey.generate().public_key(), {"EdDSA"}),
    ],
)
def test_a_public_key_in_pem(public: Any, algorithms: set[str]) -> None:
    (key,) = key_set_from_pem(_pem(public)).keys
    assert key.kid is None
    assert key.algorithms == algorithms


def test_several_blocks_and_certificates() -> None:
    text = "\n\n" + _certificate(EC_PRIVATE) + "\n" + _pem(RSA_PUBLIC) + "\r\n"
    keys = key_set_from_pem(text)
    assert [key.kty for key in keys.keys] == ["EC", "RSA"]
    assert keys.keys[1].thumbprint == RFC7638_THUMBPRINT


_EC_PEM = _pem(EC_PRIVATE.public_key())
_PRIVATE_PEM = EC_PRIVATE.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def _changed(pem: str, old: str, new: str) -> str:
    first, *body, last = pem.strip().splitlines()
    der = base64.b64decode("".join(body)).replace(bytes.fromhex(old), bytes.fromhex(new), 1)
    return "\n".join((first, base64.b64encode(der).decode(), last))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        pytest.param("", "no pem block: write a public key or a certificate", id="nothing"),
        pytest.param(" \n", "no pem block: write a public key or a certificate", id="only space"),
        pytest.param("junk", "not pem: write whole blocks", id="junk"),
        pytest.param(_EC_PEM + "junk", "not pem: write whole blocks", id="junk after"),
        pytest.param("junk\n" + _EC_PEM, "not pem: write whole blocks", id="junk before"),
        pytest.param(_EC_PEM.replace("-----END PUBLIC", "-----END PRIVATE"), "not pem: write whole", id="other end"),
        pytest.param(_PRIVATE_PEM, "pem block `PRIVATE KEY`: write a `PUBLIC KEY` or a `CERTIFICATE`", id="private"),
        pytest.param(_EC_PEM.replace("\nM", "\nN", 1), "pem block `PUBLIC KEY` cannot be read", id="damaged"),
        pytest.param(
            _certificate(EC_PRIVATE).replace("\nM", "\nN", 1),
            "pem block `CERTIFICATE` cannot be read",
            id="damaged certificate",
        ),
        pytest.param(
            _pem(ec.generate_private_key(ec.SECP256K1()).public_key()), "holds a key of the wrong kind", id="secp256k1"
        ),
        pytest.param(
            _pem(x25519.X25519PrivateKey.generate().public_key()), "holds a key of the wrong kind", id="x25519"
        ),
        pytest.param(
            _pem(rsa.generate_private_key(65_537, 1024).public_key()),  # noqa: S505 - a weak key is what is tested
            "rsa key of 1024 bits",
            id="rsa weak",
        ),
        pytest.param(
            _changed(_EC_PEM, "06082a8648ce3d030107", "06082a8648ce3d03017f"),
            "pem block `PUBLIC KEY` holds a key of an unknown kind",
            id="a curve nobody has",
        ),
        pytest.param(
            _changed(_certificate(EC_PRIVATE), "a003020102", "a003020109"),
            "pem block `CERTIFICATE` cannot be read",
            id="a certificate of version 10",
        ),
    ],
)
def test_rubbish_in_pem_is_told_to_the_operator(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=f"^.*{why.replace('(', '[(]')}"):
        key_set_from_pem(text)


def test_every_cut_of_a_pem_block_is_refused() -> None:
    text = _EC_PEM.strip()
    key_set_from_pem(text)
    for length in range(len(text)):
        with pytest.raises(ValueError, match="pem"):
            key_set_from_pem(text[:length])


@given(
    st.text(max_size=40)
    | st.from_regex(r"\A-----BEGIN PUBLIC KEY-----\n[A-Za-z0-9+/=\n]{0,80}\n-----END PUBLIC KEY-----\Z")
)
def test_only_a_value_error_escapes_from_pem(text: str) -> None:
    with pytest.raises(ValueError, match="pem"):
        key_set_from_pem(text)


# --- secrets ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("algorithm", "least"), [("HS256", 32), ("HS384", 48), ("HS512", 64)])
def test_a_secret_is_as_long_as_its_hash(algorithm: str, least: int) -> None:
    (key,) = key_set_from_secret(Secret("s" * least), [algorithm]).keys
    assert (key.kty, key.key, key.thumbprint) == ("oct", b"s" * least, "secret")
    assert key.algorithms == {algorithm}
    with pytest.raises(ValueError, match=f"the secret is too short: use at least {least} bytes"):
        key_set_from_secret(Secret("s" * (least - 1)), [algorithm])


def test_the_longest_hash_counts() -> None:
    assert key_set_from_secret(Secret("s" * 64), {"HS256", "HS512"}).keys[0].algorithms == {"HS256", "HS512"}
    with pytest.raises(ValueError, match="use at least 64 bytes"):
        key_set_from_secret(Secret("s" * 63), {"HS256", "HS512"})


def test_bytes_count_not_characters() -> None:
    assert key_set_from_secret(Secret("\u00e9" * 16), {"HS256"}).keys[0].key == "\u00e9".encode() * 16


@pytest.mark.parametrize("algorithms", [[], ["RS256"], ["HS256", "RS256"], ["none"], ["hs256"]])
def test_a_secret_is_for_hmac_only(algorithms: list[str]) -> None:
    with pytest.raises(ValueError, match="a secret is for `HS256`, `HS384` and `HS512` only"):
        key_set_from_secret(Secret("s" * 64), algorithms)


def test_a_secret_that_is_no_text_is_refused_without_showing_it() -> None:
    with pytest.raises(ValueError, match="not valid utf-8") as caught:
        key_set_from_secret(Secret("hunter2\udc80" * 8), ["HS256"])
    assert caught.value.__cause__ is None
    assert not isinstance(caught.value, UnicodeError)


@pytest.mark.parametrize(
    ("name", "size", "private"), [("P-256", 32, 49_350), ("P-384", 48, 6_394), ("P-521", 66, 2), ("P-256", 32, 1)]
)
def test_thumbprints_of_curves_are_those_of_rfc_7638(name: str, size: int, private: int) -> None:
    """Hashed are `crv`, `kty`, `x` and `y`, in this order and of full length: all but the last begin with zeros."""
    jwk = _ec_jwk(name, private)
    coordinates = [parse_base64url(jwk[its]) for its in "xy"]
    assert [len(its) for its in coordinates] == [size, size]
    assert [its[0] == 0 for its in coordinates] == [private != 1] * 2
    hashed = f'{{"crv":"{name}","kty":"EC","x":"{jwk["x"]}","y":"{jwk["y"]}"}}'
    expected = render_base64url(hashlib.sha256(hashed.encode()).digest())
    assert parse_key_set(json.dumps({"keys": [jwk]}).encode()).thumbprints == {expected}
