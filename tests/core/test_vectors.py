"""Public vectors: every valid one within policy is accepted, every other is refused for its own reason.

The tables go from what the vectors' authors say is wrong to the Reason that we must give; nothing is taken from our own
code's answers, and the counts hold that no vector is left out.
"""

from __future__ import annotations

import base64
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from authz.core.base64url import parse_base64url
from authz.core.claims import check_claims
from authz.core.jwk import KeySet, key_set_from_secret, parse_key_set
from authz.core.jwt import (
    ASYMMETRIC,
    SYMMETRIC,
    Jwt,
    _parse_algorithm,
    _parse_kid,
    _parse_segments,
    _parse_type,
    parse_jwt,
    verify_jwt,
)
from authz.model import Expectation, ProviderError, Reason, Rejected, Secret

VECTORS = Path(__file__).parent.parent / "vectors"
NOW = 1_795_000_000.0
"""When the vectors' own verdicts were computed."""

ALL = Expectation(issuer="x", audiences=None, algorithms=ASYMMETRIC | SYMMETRIC, header_types=frozenset({"", "jwt"}))
ACCEPTED = "accepted"
NO_KEY = "no usable key"

SIGNATURE_REASONS: dict[str, str] = {
    "verifies": ACCEPTED,
    "not compact": Reason.JWT_MALFORMED,
    r"\d segments": Reason.JWT_MALFORMED,
    "5 segments": Reason.JWT_ENCRYPTED,
    "bad MAC|bad signature|empty signature|ECDSA signature length": Reason.JWT_SIGNATURE,
    "alg none": Reason.JWT_ALGORITHM,
    "bad JSON: JSONDecodeError": Reason.JWT_HEADER,
    "non-base64url character|non-canonical trailing bits": Reason.JWT_MALFORMED,
    "no key with that kid": Reason.JWT_UNKNOWN_KEY,
    r"JWK alg (ES256 != header alg HS256|PS\d+ != header alg [PR]S\d+)": Reason.JWT_KEY_MISMATCH,
    r"JWK alg (ES521|ES224|A256\w+) != .*": NO_KEY,
    "HMAC key shorter than hash .*|RSA key shorter than 2048 bits|bad RSA exponent": NO_KEY,
    "curve/alg mismatch|point not on curve|key_ops lacks verify|use is not sig": NO_KEY,
}
# Accepted by others, refused here by policy: keys of a generator that is known to be broken.
STRICTER = {"WP-KEY-7": NO_KEY, "WP-CRY-46": NO_KEY}


def load(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((VECTORS / f"{name}.json").read_text())
    return document


def text_of(token: str | dict[str, Any]) -> str:
    """Return a token as a client would send it: two of Wycheproof's stand in the JSON serialization."""
    return token if isinstance(token, str) else json.dumps(token)


def expected_of(case: dict[str, Any]) -> str:
    why = case["strict_reference"]["why"]
    if case["id"] in STRICTER:
        return STRICTER[case["id"]]
    if why == "5 segments":
        return Reason.JWT_ENCRYPTED
    (found,) = [reason for pattern, reason in SIGNATURE_REASONS.items() if re.fullmatch(pattern, why)]
    return found


def keys_of(document: dict[str, Any]) -> KeySet | None:
    """Return the vectors' keys; a symmetric one comes from the operator, never from a JWKS."""
    secrets = [its for its in document.get("keys", []) if its.get("kty") == "oct"]
    try:
        if not secrets:
            return parse_key_set(json.dumps(document).encode())
        named = secrets[0].get("alg")
        secret = Secret(parse_base64url(secrets[0]["k"]).decode("latin-1"))
        keys = key_set_from_secret(secret, {named} if named in SYMMETRIC else SYMMETRIC)
    except (ProviderError, ValueError):
        return None
    # The operator's secret is text, the vectors' is octets.
    octets = parse_base64url(secrets[0]["k"])
    least = max({"HS256": 32, "HS384": 48, "HS512": 64}[name] for name in keys.keys[0].algorithms)
    if len(octets) < least:
        return None
    key = type(keys.keys[0])(kid=None, kty="oct", algorithms=keys.keys[0].algorithms, thumbprint="secret", key=octets)
    return KeySet(keys=(key,), thumbprints=keys.thumbprints)


def verify_signature(token: str, document: dict[str, Any]) -> str:
    """Verify the signature alone: these payloads are no claims."""
    try:
        header, _, signing_input, signature = _parse_segments(token)
        jwt = Jwt(
            algorithm=_parse_algorithm(header),
            kid=_parse_kid(header),
            type=_parse_type(header),
            claims={},
            signing_input=signing_input,
            signature=signature,
        )
        keys = keys_of(document)
        if keys is None:
            return NO_KEY
        verify_jwt(jwt, keys, ALL)
    except Rejected as rejected:
        return rejected.reason
    return ACCEPTED


def test_wycheproof_signatures() -> None:
    cases = load("wycheproof_jws")["cases"]
    wrong = []
    for case in cases:
        found, expected = verify_signature(text_of(case["token"]), case.get("jwks") or {}), expected_of(case)
        unknown = expected is Reason.JWT_UNKNOWN_KEY and keys_of(case["jwks"] or {}) is not None
        # The operator's secret has no name: it is tried, whatever the token's kid.
        if unknown and any(its.get("kty") == "oct" for its in case["jwks"]["keys"]):
            expected = Reason.JWT_SIGNATURE
        if found != expected:
            wrong.append((case["id"], case["comment"], expected, found))
    assert wrong == []
    assert Counter(case["sig_level"] for case in cases) == {"reject": 446, "accept": 49, "either": 15}


def test_wycheproof_tokens_are_no_claims_and_never_accepted() -> None:
    cases = load("wycheproof_jws")["cases"]
    for case in cases:
        with pytest.raises(Rejected):
            parse_jwt(text_of(case["token"]))
    assert Counter(type(case["token"]) for case in cases) == {str: 508, dict: 2}


def test_wycheproof_encrypted_tokens() -> None:
    found: Counter[tuple[int, Reason]] = Counter()
    for case in load("wycheproof_jwe")["cases"]:
        with pytest.raises(Rejected) as caught:
            parse_jwt(case["token"])
        found[case["parts"], caught.value.reason] += 1
    assert found == {(5, Reason.JWT_ENCRYPTED): 128, (4, Reason.JWT_MALFORMED): 10, (1, Reason.JWT_MALFORMED): 1}


STRANGERS: dict[str, Any] = load("istio_jwt")["keysets"]["istio-e2e"]
"""Usable keys which signed none of the tokens that come without any, so that a token itself is judged."""


def judge(token: str, document: dict[str, Any], trust: dict[str, Any]) -> str:
    """Take a token the whole way; where its keys are none that we would use, by a stranger's."""
    audience = trust.get("audience")
    expectation = Expectation(
        issuer=trust["issuer"],
        audiences=None if audience is None else frozenset({audience}),
        algorithms=ASYMMETRIC,
    )
    try:
        jwt = parse_jwt(token)
        try:
            keys = parse_key_set(json.dumps(document).encode())
        except ProviderError:
            keys = parse_key_set(json.dumps(STRANGERS).encode())
        verify_jwt(jwt, keys, expectation)
        check_claims(jwt.claims, expectation, now_s=NOW)
    except Rejected as rejected:
        return rejected.reason
    return ACCEPTED


TOKEN_REASONS: dict[str, str] = {
    "signature, exp, iss .*|real RS256 token, .*|aud string|aud list|sample token|Test.*|Requires.*": ACCEPTED,
    r"alg '(HS\d+|InvalidAlg)' not allowed": Reason.JWT_ALGORITHM,
    r"[124] segments": Reason.JWT_MALFORMED,
    "5 segments": Reason.JWT_ENCRYPTED,
    "alg missing or not a string|bad JSON: JSONDecodeError|kid not a string": Reason.JWT_HEADER,
    "bad signature": Reason.JWT_SIGNATURE,
    "exp missing": Reason.EXPIRY_MISSING,
    "expired or bad exp": Reason.EXPIRED,
    "impossible base64url length|non-base64url character": Reason.JWT_MALFORMED,
    "no key with that kid": Reason.JWT_UNKNOWN_KEY,
    "issuer": Reason.ISSUER_MISMATCH,
    "audience": Reason.AUDIENCE_MISMATCH,
}
# What their authors' words do not tell: another fault that is judged first.
JUDGED_FIRST: dict[str, str] = {
    "JVL-jwk_rsa_pss-JwtTextWithNoKid-JwtIoPublicKeyRSAPSS": Reason.ISSUER_MISSING,
    "ENV-ES256WithoutIss": Reason.ISSUER_MISSING,
    "JVL-parse-TestParsePayloadBadJson": Reason.JWT_PAYLOAD,
    "IST-noaud-foo": Reason.AUDIENCE_MISSING,
}


def expected_of_token(case: dict[str, Any]) -> str:
    if case["id"] in JUDGED_FIRST:
        return JUDGED_FIRST[case["id"]]
    why = case.get("why_e2e") or case["why"]
    (expected,) = [reason for pattern, reason in TOKEN_REASONS.items() if re.fullmatch(pattern, why)]
    # A token that names no key is tried with every one that there is.
    return Reason.JWT_SIGNATURE if expected is Reason.JWT_UNKNOWN_KEY and not names_a_key(case["token"]) else expected


def names_a_key(token: str) -> bool:
    return b'"kid"' in base64.urlsafe_b64decode(token.partition(".")[0] + "===")


@pytest.mark.parametrize(
    ("name", "verdict", "counts"),
    [
        ("jwt_verify_lib", "must_e2e", {"allow": 3, "deny": 83}),
        ("envoy_jwt_authn", "must", {"allow": 4, "deny": 12}),
        ("istio_jwt", "must", {"allow": 16, "deny": 7}),
    ],
)
def test_tokens_of_the_field(name: str, verdict: str, counts: dict[str, int]) -> None:
    document = load(name)
    wrong = []
    for case in document["cases"]:
        found = judge(case["token"], document["keysets"].get(case["keyset"], {}), case.get("trust") or {"issuer": "x"})
        expected = expected_of_token(case)
        if found != expected or (found == ACCEPTED) is not (case[verdict] == "allow"):
            wrong.append((case["id"], case["why"], expected, found))
    assert wrong == []
    assert Counter(case[verdict] for case in document["cases"]) == counts


COOKBOOK_REASONS: dict[str, str] = {
    r"JWS JSON serialization .*": Reason.JWT_MALFORMED,
    r"payload is not a claims object(; invalid: bad MAC)?": Reason.JWT_PAYLOAD,
    r"payload is not a claims object; invalid: crit.*": Reason.JWT_MALFORMED,
    r"PS256 JWT claims, .*|signature valid, expired|signature valid, exp .*": Reason.EXPIRED,
    r"JWE .*": Reason.JWT_ENCRYPTED,
    r"HS256 with an oct key.*": Reason.JWT_ALGORITHM,
    r"signature valid, payload is .*": Reason.JWT_PAYLOAD,
    r"Unsecured JWS": Reason.JWT_ALGORITHM,
    r"RFC 7515 Appendix E.*": Reason.JWT_CRIT,
}


COOKBOOK_SIGNATURES: dict[str, str] = {"valid": ACCEPTED, "invalid: bad MAC": Reason.JWT_SIGNATURE}


def test_the_examples_of_the_rfcs() -> None:
    document = load("rfc_cookbook")
    wrong = []
    for case in document["cases"]:
        keys = document["keysets"].get(case["keyset"], {})
        issuer = "hobbiton.example" if case["id"] == "CKB-6-inner-jws" else "joe"
        found = judge(case["token"], keys, {"issuer": issuer})
        (expected,) = [its for pattern, its in COOKBOOK_REASONS.items() if re.fullmatch(pattern, case["why"])]
        if found != expected:
            wrong.append((case["id"], case["why"], expected, found))
        # Of the payloads that are no claims, the signature is judged beside.
        signature = COOKBOOK_SIGNATURES.get(case["reference_signature"])
        if signature is not None and verify_signature(case["token"], keys) != signature:
            wrong.append((case["id"], "signature", signature, verify_signature(case["token"], keys)))
    assert wrong == []
    assert Counter(COOKBOOK_SIGNATURES.get(case["reference_signature"]) for case in document["cases"]) == {
        ACCEPTED: 10,
        Reason.JWT_SIGNATURE: 1,
        None: 18,
    }


# RFC 7518 §6.2.1.1: `crv` must be there. The library guesses it from `alg`; we do not.
WITHOUT_CURVE = {"JVL-jwks-JwksECMissingBothAlgCrvES256", "JVL-jwks-JwkECMissingCrv", "JVL-jwks-JwksECUnspecifiedCrv"}

KEY_DOCUMENT_WORDS: dict[str, str] = {
    "JwksParseError": "cannot be read: no strict json",
    "JwksNoKeys": "no list `keys`",
    "JwksBadKeys": "no list `keys`",
    "JwksX509ParseError": "no list `keys`",  # the format of certificates by name is Google's own, and not read here
    "JwksMissingKty": "key type is missing",
    "JwksBadKty": "key type is no text",
    "JwksNotImplementedKty": "key type is `XYZ`",
    "JwksRSAKeyBadAlg": "algorithm `ES256` is not for such a key here",
    "JwksRSAKeyMissingN": "`n` is missing",
    "JwksRSAKeyBadN": "`n` is no text",
    "JwksRSAKeyMissingE": "`e` is missing",
    "JwksRSAKeyBadE": "`e` is no text",
    "JwksRsaParseError": "`n` is no base64url",
    "JwksECKeyBadAlg": "algorithm `RS256` is not for such a key here",
    "JwksECKeyAlgNotCompatibleWithCrv": r"algorithm `ES\d+` is not for such a key here",
    "JwksECKeyAlgOrCrvUnsupported": "algorithm `ES1024` is not for such a key here|curve is `P-1024`",
    "JwksECKeyBadCrv": "curve is no text",
    "JwksECKeyMissingX": "`x` is missing",
    "JwksECKeyBadX": "`x` is no text",
    "JwksECKeyMissingY": "`y` is missing",
    "JwksECKeyBadY": "`y` is no text",
    "JwksEcXorYBadBase64": "`x` is no base64url",
    "JwksEcParseError": "`x` is no base64url|point not on the curve",
    "JwksOKPKeyBadAlg": "algorithm `ES256` is not for such a key here",
    "JwksOKPKeyMissingCrv": "curve is missing",
    "JwksOKPKeyBadCrv": "curve is no text",
    "JwksOKPKeyCrvUnsupported": "curve is `X25519`|`x` is missing",  # Ed448, which the library lacks, is read here
    "JwksOKPKeyMissingX": "`x` is missing",
    "JwksOKPKeyBadX": "`x` is no text",
    "JwksOKPXBadBase64": "`x` is no base64url",
    "JwksOKPXWrongLength": "coordinate of the wrong length",
    **dict.fromkeys(
        ("JwksHMACKeyBadAlg", "JwksHMACKeyMissingK", "JwksHMACKeyBadK", "JwksOctBadBase64"), "symmetric key"
    ),
}
"""What we say of the fault that a document is about, in the order of the library's own statuses."""


def key_of(name: str, *members: str) -> dict[str, Any]:
    """Return members of the first key of a good document."""
    (text,) = [case["text"] for case in load("jwks_documents")["cases"] if case["id"] == f"JVL-jwks-{name}"]
    key = json.loads(text)["keys"][0]
    return {member: key[member] for member in members}


RSA = key_of("GoodJwks", "n", "e")
P256 = key_of("JwksECMatchAlgES256CrvP256", "crv", "x", "y")
P384 = key_of("JwksECMatchAlgES384CrvP384", "crv", "x", "y")
P521 = key_of("JwksECMatchAlgES512CrvP521", "crv", "x", "y")
ED25519 = key_of("GoodOKP", "crv", "x")

# Documents that lack more than they are about: what is said of them as published, and what completes them. (`n` is no
# base64url in two of them; the authors' library looks whether `e` is there first.)
INCOMPLETE: dict[str, tuple[str, dict[str, Any]]] = {
    "JwksMismatchKty1": ("`n` is missing", RSA),
    "JwksMismatchKty2": ("curve is missing", P256),
    "JwksECNoXY": ("curve is missing", {"crv": "P-256"}),
    "JwksRSAKeyMissingE": ("`n` is no base64url", {"n": RSA["n"]}),
    "JwksRSAKeyBadE": ("`n` is no base64url", {"n": RSA["n"]}),
    "JwksECXYBadBase64": ("curve is missing", {"crv": "P-256"}),
    "JwksECWrongXY": ("curve is missing", {"crv": "P-256"}),
    "JwksECMissingBothAlgES384": ("curve is missing", P384 | {"x": P384["y"], "y": P384["x"]}),
    "JwksECMismatchAlgCrv1": ("`x` is missing", P384),
    "JwksECMismatchAlgCrv2": ("`x` is missing", P521),
    "JwksECMismatchAlgCrv3": ("`x` is missing", P256),
    "JwksECNotSupportedAlg": ("curve is missing", P256),
    "JwksOKPKeyBadAlg": ("curve is missing", ED25519),
}


def reason_of_document(text: str) -> str:
    with pytest.raises(ProviderError) as caught:
        parse_key_set(text.encode())
    assert caught.value.reason is Reason.KEYS_UNAVAILABLE
    return caught.value.detail


def test_key_documents() -> None:
    cases = load("jwks_documents")["cases"]
    good = [case for case in cases if case["lib_status"] == "Ok" and case["id"] not in WITHOUT_CURVE]
    for case in good:
        assert len(parse_key_set(case["text"].encode()).keys) == (case.get("lib_keys") or 1), case["id"]
    for name in WITHOUT_CURVE:
        (text,) = [case["text"] for case in cases if case["id"] == name]
        assert "curve is missing" in reason_of_document(text)
    assert (len(good), len(WITHOUT_CURVE), len(cases)) == (9, 3, 60)


def test_a_bad_key_document_is_refused_for_its_own_fault() -> None:
    cases = [case for case in load("jwks_documents")["cases"] if case["lib_status"] != "Ok"]
    wrong = []
    for case in cases:
        words, text = KEY_DOCUMENT_WORDS[case["lib_status"]], case["text"]
        if not case["strict_json"]:
            assert "no strict json" in reason_of_document(text), case["id"]
            text = re.sub(r",(\s*[}\]])", r"\1", text)  # the comma too much that many of them end in
        published, members = INCOMPLETE.get(case["id"].removeprefix("JVL-jwks-"), ("", {}))
        if members:
            assert published in reason_of_document(text), case["id"]
            text = json.dumps({"keys": [json.loads(text)["keys"][0] | members]})
        detail = reason_of_document(text)
        if re.search(words, detail) is None:
            wrong.append((case["id"], words, detail))
    assert wrong == []
    assert len(cases) == 48
    assert {case["lib_status"] for case in cases} == KEY_DOCUMENT_WORDS.keys()
    assert INCOMPLETE.keys() <= {case["id"].removeprefix("JVL-jwks-") for case in cases}
