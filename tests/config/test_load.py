"""What a good file compiles to, and how what stands outside it is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key as generate_rsa_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from authz.config import Configuration, document, json_schema, load, load_text
from authz.core.policy import Access, Keep
from authz.model import ClientAuth, ConfigError, PlaceKind, Secret, TokenUse
from tests.tls import Authority

RULE = """
rules:
  - {name: all, hosts: everywhere, paths: ["/**"], tokens_from: shop, require: any_token}
"""
HEAD = """
version: 1
providers:
  shop:
    issuer: https://sso.example.com/realms/shop
    audiences: [orders-api]
"""

_BROKEN: dict[str, object] = {
    "version": None,
    "providers": [],
    "identity_headers": {"x-user": 1, "x-role": "{roles}"},
    "guards": {"a": 1},
    "rules": ["a", {"name": "x"}, None],
    "hosts": {"a.b": "extend"},
    "cors": [{"hosts": "a"}],
    "client_address": {"trusted_hops": "1"},
    "server": {"grpc": {}, "drain_s": 1},
    "other": {},
}


def compiled(text: str, tmp_path: Path, **environ: str) -> Configuration:
    return load_text(text, path=tmp_path / "rules.yaml", environ=environ)


def problems_of(text: str, tmp_path: Path, **environ: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        compiled(text, tmp_path, **environ)
    return [problem.message for problem in caught.value.problems]


def test_every_problem_is_told_not_only_the_first(tmp_path: Path) -> None:
    text = HEAD.replace("https://", "http://") + RULE.replace("/**", "x").replace("everywhere", "[a..b]")
    found = problems_of(text, tmp_path)
    assert len(found) == 3
    assert any("plain http" in its for its in found)
    assert any("does not start with" in its for its in found)
    assert any("is not a host name" in its for its in found)


def test_one_kind_of_problem_hides_no_other(tmp_path: Path) -> None:
    """A key written twice, a reference, a shape and a meaning, each in a part of its own: one run tells of all."""
    text = """
version: 1
providers:
  unset: {issuer: "${env:NONE}", audiences: [a]}
  plain: {issuer: "http://sso.example.com", audiences: [a]}
  misshapen: {issuer: "https://b.example.com", audiences: [a], leeway: long}
identity_headers: {x-user: ["{sub}"], x-role: "{roles}"}
rules:
  - {name: twice, name: twice, hosts: everywhere, paths: [/a], allow: anyone}
  - {name: text, hosts: everywhere, paths: /b, allow: anyone}
  - {name: one, hosts: everywhere, paths: [/c], tokens_from: unset, require: {when: 1 + 1}}
  - {name: two, hosts: everywhere, paths: [/d], tokens_from: plain, require: any_token, identity_headers: {x-user: "a"}}
  - {name: three, hosts: everywhere, paths: [/d], tokens_from: other, require: any_token}
  - {name: three, hosts: [h.example], paths: [/f], allow: anyone}
hosts: {h.example: extends}
"""
    with pytest.raises(ConfigError) as caught:
        compiled(text, tmp_path)
    expected = [
        (4, "environment variable `NONE` is not set"),
        (5, "is plain http"),
        (6, "`long` is no duration"),
        (7, "a list is no text"),
        (9, "key `name` is written twice"),
        (10, "write `[/b]`"),
        (11, "gives an int, not true or false"),
        (13, "there is no provider `other`"),
        (13, "could both judge every method"),
        (14, "`three` is named twice"),
    ]
    found = sorted((its.line, its.message) for its in caught.value.problems)
    assert len(found) == len(expected), [str(its) for its in caught.value.problems]
    for (line, message), (expected_line, words) in zip(found, sorted(expected), strict=True):
        assert line == expected_line
        assert words in message
    assert caught.value.incomplete
    assert str(caught.value).endswith("\nmore may show once these are mended")


def test_a_file_that_was_judged_in_full_promises_no_more_problems(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        compiled(HEAD + RULE.replace("/**", "x"), tmp_path)
    assert not caught.value.incomplete
    assert "more may show" not in str(caught.value)


@given(st.lists(st.sampled_from(sorted(_BROKEN)), min_size=1, unique=True))
def test_whatever_is_broken_nothing_is_put_in_force_and_nothing_else_escapes(names: list[str]) -> None:
    document = yaml.safe_load(HEAD + RULE)
    for name in names:
        document[name] = _BROKEN[name]
    with pytest.raises(ConfigError) as caught:
        load_text(json.dumps(document), path=Path("rules.yaml"), environ={})
    assert all(its.message != "cannot be understood" for its in caught.value.problems)


def test_defaults_are_safe(tmp_path: Path) -> None:
    configuration = compiled(HEAD + RULE, tmp_path)
    provider = configuration.providers["shop"]
    assert provider.expectation.audiences == frozenset({"orders-api"})
    assert provider.expectation.leeway_s == 30
    assert not provider.expectation.algorithms & {"HS256", "HS384", "HS512", "none"}
    assert provider.keys is not None
    assert provider.keys.discovery == "https://sso.example.com/realms/shop/.well-known/openid-configuration"
    rule = configuration.policy.rules[0]
    assert rule.access is Access.PROVED
    assert rule.outfit.authorization is Keep.PROVED
    assert [place.kind for place in rule.places] == [PlaceKind.AUTHORIZATION]


def test_opting_out_of_audiences_is_a_word(tmp_path: Path) -> None:
    configuration = compiled(HEAD.replace("[orders-api]", "any_audience") + RULE, tmp_path)
    assert configuration.providers["shop"].expectation.audiences is None


def test_the_keycloak_preset_knows_places_and_types(tmp_path: Path) -> None:
    provider = compiled(HEAD + "    preset: keycloak\n" + RULE, tmp_path).providers["shop"]
    assert provider.places.roles == (("realm_access", "roles"),)
    assert provider.places.client_roles == ("resource_access",)
    assert provider.expectation.claim_types == frozenset({"Bearer"})


def test_an_internal_url_is_where_discovery_is_asked(tmp_path: Path) -> None:
    extra = "    internal_url: http://keycloak.auth.svc:8080/realms/shop\n"
    provider = compiled(HEAD + extra + RULE, tmp_path).providers["shop"]
    assert provider.issuer == "https://sso.example.com/realms/shop"
    assert provider.keys is not None
    assert provider.keys.discovery == "http://keycloak.auth.svc:8080/realms/shop/.well-known/openid-configuration"


def test_secrets_come_from_files_and_the_environment_and_are_not_shown(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("from a file\n")
    extra = "    introspection: {client_id: a, client_secret: '${file:secret}', tokens: all}\n"
    configuration = compiled(HEAD + extra + RULE, tmp_path)
    introspection = configuration.providers["shop"].introspection
    assert introspection is not None
    assert introspection.client_secret == Secret("from a file")
    assert introspection.auth is ClientAuth.BASIC
    assert introspection.tokens is TokenUse.ALL
    assert "from a file" not in repr(configuration)
    assert configuration.files.keys() == {tmp_path / "rules.yaml", tmp_path / "secret"}


def test_the_environment_fills_whole_values(tmp_path: Path) -> None:
    text = HEAD.replace("https://sso.example.com/realms/shop", "${env:ISSUER}") + RULE
    provider = compiled(text, tmp_path, ISSUER="https://other.example.com").providers["shop"]
    assert provider.issuer == provider.expectation.issuer == "https://other.example.com"


@pytest.mark.parametrize("kind", ["rsa", "ec", "ed"])
def test_pem_keys_become_a_key_set(kind: str, tmp_path: Path) -> None:
    made: dict[str, Callable[[], RSAPrivateKey | EllipticCurvePrivateKey | Ed25519PrivateKey]] = {
        "rsa": lambda: generate_rsa_key(65_537, 2_048),
        "ec": lambda: generate_private_key(SECP256R1()),
        "ed": Ed25519PrivateKey.generate,
    }
    pem = made[kind]().public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "key.pem").write_bytes(pem)
    provider = compiled(HEAD + "    keys: {pem: '${file:key.pem}'}\n" + RULE, tmp_path).providers["shop"]
    assert provider.keys is not None
    assert provider.keys.inline is not None
    assert len(json.loads(provider.keys.inline)["keys"]) == 1


def test_the_digest_follows_what_bears_on_evidence_and_nothing_else(tmp_path: Path) -> None:
    def digest(text: str) -> bytes:
        return compiled(text, tmp_path, A="x" * 40, B="y" * 40).providers["shop"].digest

    plain = digest(HEAD + RULE)
    assert digest(HEAD + RULE) == plain
    assert digest(HEAD + "    http: {timeout: 3s}\n" + RULE) == plain
    assert digest(HEAD.replace("orders-api", "other-api") + RULE) != plain
    assert digest(HEAD + "    leeway: 5s\n" + RULE) != plain
    first, second = (digest(HEAD + f"    keys: {{secret: '${{env:{name}}}'}}\n" + RULE) for name in "AB")
    assert first != second


@pytest.mark.parametrize(
    ("text", "value"),
    [("30s", 30), ("5m", 300), ("250ms", 0.25), ("1h", 3_600), ("1d", 86_400), ("45", 45)],
)
def test_durations(text: str, value: float, tmp_path: Path) -> None:
    keys = f"    introspection: {{client_id: a, client_secret: '${{env:A}}', cache: {text}}}\n"
    if value > 3_600:
        assert problems_of(HEAD + keys + RULE, tmp_path, A="a") == [f"`{text}` is too much: at most 3600s"]
        return
    introspection = compiled(HEAD + keys + RULE, tmp_path, A="a").providers["shop"].introspection
    assert introspection is not None
    assert introspection.cache_s == value


@pytest.mark.parametrize("word", ["yes", "no", "on", "off", "2026-01-01", "0o17x", "1_000"])
def test_words_stay_texts(word: str, tmp_path: Path) -> None:
    rule = compiled(HEAD + RULE.replace("name: all", f"name: {word}"), tmp_path).policy.rules[0]
    assert rule.name == word


def test_a_bad_file_of_certificates_is_named(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    cert, key = authority.issue("server")
    other, _ = authority.issue("other")
    (tmp_path / "empty").write_text("")

    def told(cert: str, key: str, ca: str = "ca.pem") -> list[str]:
        tls = f"{{cert_file: {cert}, key_file: {key}, client_ca_file: {ca}}}"
        return problems_of(HEAD + RULE + f"server: {{grpc: [{{address: '0.0.0.0:1', tls: {tls}}}]}}", tmp_path)

    assert told("none.pem", key.name) == [f"`{tmp_path}/none.pem` cannot be used: no such file or directory"]
    assert told(cert.name, "none.key") == [f"`{tmp_path}/none.key` cannot be used: no such file or directory"]
    assert told(cert.name, key.name, "empty") == [f"`{tmp_path}/empty` cannot be used: not a certificate in pem"]
    (mismatch,) = told(other.name, key.name)
    assert f"`{other}` and `{key}` cannot be used" in mismatch


def test_a_file_that_is_not_there_or_not_text_is_a_problem(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: no such file"):
        load(tmp_path / "none.yaml", environ={})
    (tmp_path / "binary.yaml").write_bytes(b"version: 1\nx: \xff")
    with pytest.raises(ConfigError, match=r":2: not utf-8"):
        load(tmp_path / "binary.yaml", environ={})


def test_an_explosion_of_aliases_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document, "MAX_NODES", 50_000)
    levels = ["a0: &a0 [x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    assert problems_of("\n".join(levels), tmp_path) == ["more than 50000 values: write fewer aliases"]


def test_two_thousand_rules_load(tmp_path: Path) -> None:
    rules = [
        f"  - {{name: r{n}, hosts: [h{n % 50}.example.com], paths: [/p{n}/**], tokens_from: shop, require: any_token}}"
        for n in range(2_000)
    ]
    assert len(compiled(HEAD + "rules:\n" + "\n".join(rules), tmp_path).policy.rules) == 2_000


def test_the_schema_accepts_what_loads_and_refuses_unknown_keys() -> None:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    root = Path(__file__).parent.parent.parent
    good = [*root.glob("tests/policies/valid/*.yaml"), *root.glob("examples/*.yaml")]
    for file in good:
        validator.validate(yaml.safe_load(file.read_text()))
    bad = root / "tests/policies/invalid/unknown_key_rule.yaml"
    assert list(validator.iter_errors(yaml.safe_load(bad.read_text())))
