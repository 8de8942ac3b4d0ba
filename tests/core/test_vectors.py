"""Public vectors: every valid one within policy is accepted, every other is refused for its own reason.

The tables go from what the vectors' authors say is wrong to the Reason that we must give; nothing is taken from our own
code's answers, and the counts hold that no vector is left out.
"""

from __future__ import annotations

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
    cases = [case for case in load("wycheproof_jws")["cases"] if case["strict_reference"]["why"] != "not compact"]
    wrong = []
    for case in cases:
        found, expected = verify_signature(case["token"], case.get("jwks") or {}), expected_of(case)
        unknown = expected is Reason.JWT_UNKNOWN_KEY and keys_of(case["jwks"] or {}) is not None
        # The operator's secret has no name: it is tried, whatever the token's kid.
        if unknown and any(its.get("kty") == "oct" for its in case["jwks"]["keys"]):
            expected = Reason.JWT_SIGNATURE
        if found != expected:
            wrong.append((case["id"], case["comment"], expected, found))
    assert wrong == []
    assert Counter(case["sig_level"] for case in cases) == {"reject": 444, "accept": 49, "either": 15}


def test_wycheproof_tokens_are_no_claims_and_never_accepted() -> None:
    cases = [case for case in load("wycheproof_jws")["cases"] if isinstance(case["token"], str)]
    for case in cases:
        with pytest.raises(Rejected):
            parse_jwt(case["token"])
    assert len(cases) == 508


def test_wycheproof_encrypted_tokens() -> None:
    found: Counter[tuple[int, Reason]] = Counter()
    for case in load("wycheproof_jwe")["cases"]:
        with pytest.raises(Rejected) as caught:
            parse_jwt(case["token"])
        found[case["parts"], caught.value.reason] += 1
    assert found == {(5, Reason.JWT_ENCRYPTED): 128, (4, Reason.JWT_MALFORMED): 10, (1, Reason.JWT_MALFORMED): 1}


def judge(token: str, document: dict[str, Any], trust: dict[str, Any]) -> str:
    """Take a token the whole way."""
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
            return NO_KEY
        verify_jwt(jwt, keys, expectation)
        check_claims(jwt.claims, expectation, now_s=NOW)
    except Rejected as rejected:
        return rejected.reason
    return ACCEPTED


TOKEN_REASONS: dict[str, set[str]] = {
    "signature, exp, iss .*|real RS256 token, .*|aud string|aud list|sample token|Test.*|Requires.*": {ACCEPTED},
    r"alg '(HS\d+|InvalidAlg)' not allowed": {NO_KEY},
    r"[124] segments": {Reason.JWT_MALFORMED},
    "5 segments": {Reason.JWT_ENCRYPTED},
    "alg missing or not a string|bad JSON: JSONDecodeError|kid not a string": {Reason.JWT_HEADER},
    "bad signature": {Reason.JWT_SIGNATURE},
    "exp missing": {Reason.EXPIRY_MISSING, Reason.ISSUER_MISSING},
    "expired or bad exp": {Reason.EXPIRED},
    "impossible base64url length|non-base64url character": {Reason.JWT_MALFORMED},
    "no key with that kid": {Reason.JWT_UNKNOWN_KEY, NO_KEY, Reason.JWT_PAYLOAD},
    "issuer": {Reason.ISSUER_MISMATCH},
    "audience": {Reason.AUDIENCE_MISMATCH, Reason.AUDIENCE_MISSING},
}


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
        why = case.get("why_e2e") or case["why"]
        (expected,) = [its for pattern, its in TOKEN_REASONS.items() if re.fullmatch(pattern, why)]
        if found not in expected or (found == ACCEPTED) is not (case[verdict] == "allow"):
            wrong.append((case["id"], why, found))
    assert wrong == []
    assert Counter(case[verdict] for case in document["cases"]) == counts


COOKBOOK_REASONS: dict[str, str] = {
    r"JWS JSON serialization .*": Reason.JWT_MALFORMED,
    r"payload is not a claims object(; invalid: bad MAC)?": Reason.JWT_PAYLOAD,
    r"payload is not a claims object; invalid: crit.*": Reason.JWT_MALFORMED,
    r"PS256 JWT claims, .*|signature valid, expired|signature valid, exp .*": Reason.EXPIRED,
    r"JWE .*": Reason.JWT_ENCRYPTED,
    r"HS256 with an oct key.*": NO_KEY,
    r"signature valid, payload is .*": Reason.JWT_PAYLOAD,
    r"Unsecured JWS": Reason.JWT_ALGORITHM,
    r"RFC 7515 Appendix E.*": Reason.JWT_CRIT,
}


def test_the_examples_of_the_rfcs() -> None:
    document = load("rfc_cookbook")
    wrong = []
    for case in document["cases"]:
        keys = document["keysets"].get(case["keyset"], {})
        issuer = "hobbiton.example" if case["id"] == "CKB-6-inner-jws" else "joe"
        found = judge(case["token"], keys, {"issuer": issuer})
        (expected,) = [its for pattern, its in COOKBOOK_REASONS.items() if re.fullmatch(pattern, case["why"])]
        if found != expected and not (expected == Reason.JWT_ALGORITHM and found == NO_KEY):
            wrong.append((case["id"], case["why"], expected, found))
        if case.get("reference_signature") == "valid" and verify_signature(case["token"], keys) != ACCEPTED:
            wrong.append((case["id"], "signature", ACCEPTED, verify_signature(case["token"], keys)))
    assert wrong == []
    assert len(document["cases"]) == 29


# RFC 7518 §6.2.1.1: `crv` must be there. The library guesses it from `alg`; we do not.
WITHOUT_CURVE = {"JVL-jwks-JwksECMissingBothAlgCrvES256", "JVL-jwks-JwkECMissingCrv", "JVL-jwks-JwksECUnspecifiedCrv"}


def test_key_documents() -> None:
    cases = load("jwks_documents")["cases"]
    taken = 0
    for case in cases:
        good = case["lib_status"] == "Ok" and case["id"] not in WITHOUT_CURVE
        if good:
            keys = parse_key_set(case["text"].encode())
            assert len(keys.keys) == (case.get("lib_keys") or 1), case["id"]
            taken += 1
        else:
            with pytest.raises(ProviderError) as caught:
                parse_key_set(case["text"].encode())
            assert caught.value.reason is Reason.KEYS_UNAVAILABLE, case["id"]
    assert (taken, len(cases)) == (9, 60)
