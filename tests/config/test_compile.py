"""A whole file, however it is spoilt: it loads, or every problem is told, and nothing else happens."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from authz.config import Configuration, load_text
from authz.config.document import parse_document
from authz.config.schema import RulesFile
from authz.model import ConfigError
from tests.tls import Authority

ROOT = Path(__file__).parent.parent.parent
FILES = sorted(
    [*ROOT.glob("examples/*.yaml"), *ROOT.glob("tests/policies/valid/*.yaml"), ROOT / "authz/demo/rules.yaml"]
)
TEXTS = [path.read_text() for path in FILES]
TOKENS = [re.findall(r"\n *|[\w./*-]+|\s+|.", text) for text in TEXTS]
ENVIRON = {
    **dict.fromkeys(("ORDERS_API_SECRET", "SECRET", "DEMO_CLIENT_SECRET"), "0123456789012345678901234567890123456789"),
    "DEMO_ISSUER": "https://demo.example",
    "NOT_UTF8": "\udcff",
    "LONG": "9" * 400 + "s",
}
ODD_TOKENS = [
    *("", " ", ":", ",", "[", "]", "{", "}", '"', "'", "\n", "\n  ", "- ", "&a ", "*a", "!!str ", "<<", "|", ">", "#"),
    *("null", "true", "0", "-1", "1e999", "1.5", "9" * 16, "''", '"\\0"', '"\\u2028"', "\ud800", "\0", "any", "all"),
    *("${env:NOT_UTF8}", "${env:LONG}", "${env:NONE}", "${file:.}", "${file:none}", '"${file:\\0}"', "${", "**", "{1}"),
]
ODD_VALUES: list[Any] = [
    *(None, True, 0, -1, 1.5, 10**15, [], {}, [[]], [None], {"any": []}, {"all": ["x"]}, {"": {}}, "", " ", "x"),
    *(
        "\0",
        "\u2028",
        "\U0010ffff",
        "${env:NOT_UTF8}",
        "${env:LONG}",
        "${file:.}",
        "${file:none}",
        "${file:\0}",
        "a\nb",
    ),
    *(
        "9" * 400 + "s",
        "everywhere",
        "*.x",
        "[::1]",
        "xn--a",
        "/a/{b}/**",
        "/",
        "{sub}",
        "{claims.a}",
        "{",
        "any_token",
    ),
    *("http://[", "https://h:99999", "unix:/x", "0.0.0.0:70000", "10.0.0.0/33", "1/0 == 1", "has(", '{"keys": []}'),
]


STRIDE = 32
"""Every value in every place takes a minute: one share of 32 is tried, and others at random below."""

JWKS = {"keys": [{"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return a valid file that uses every key there is."""
    folder = tmp_path_factory.mktemp("tls")
    authority = Authority(folder)
    cert, key = map(str, authority.issue("one"))
    return {
        "version": 1,
        "providers": {
            "shop": {
                "preset": "keycloak",
                "issuer": "https://sso.example.com/realms/shop",
                "internal_url": "http://keycloak.auth.svc:8080/realms/shop",
                "insecure_http": True,
                "audiences": ["orders-api"],
                "algorithms": ["ES256"],
                "token_types": ["none", "at+jwt"],
                "clients": ["web"],
                "leeway": "10s",
                "max_lifetime": "1h",
                "keys": {
                    "discovery": "https://sso.example.com/.well-known/openid-configuration",
                    "cache_dir": "keys",
                    "refresh": "5m",
                    "min_refetch": "30s",
                    "max_stale": "24h",
                },
                "claims": {"roles": ["a.b"], "client_roles": "c", "groups": ["g"], "scopes": ['["s.t"]']},
                "introspection": {
                    "client_id": "orders-api",
                    "auth": "basic",
                    "client_secret": "${env:SECRET}",
                    "tokens": "all",
                    "endpoint": "https://sso.example.com/introspect",
                    "token_type_hint": "access_token",
                    "cache": "30s",
                    "inactive_cache": 5,
                    "stale_if_error": "1m",
                    "missing": ["aud"],
                    "max_concurrent": 4,
                    "breaker_failures": 5,
                    "breaker_open": "5s",
                },
                "http": {
                    "timeout": "5s",
                    "ca_file": str(authority.file),
                    "proxy": "http://proxy:3128",
                    "client_cert": cert,
                    "client_key": key,
                    "max_body_bytes": 65_536,
                },
            },
            "acme": {
                "issuer": "https://acme.example.com",
                "audiences": "any_audience",
                "keys": {"jwks_url": "https://acme.example.com/jwks"},
            },
            "inline": {"issuer": "https://inline.example.com", "audiences": ["a"], "keys": {"jwks": JWKS}},
            "pem": {"issuer": "https://pem.example.com", "audiences": ["a"], "keys": {"pem": f"${{file:{cert}}}"}},
            "shared": {
                "issuer": "https://hs.example.com",
                "audiences": ["a"],
                "algorithms": ["HS256"],
                "keys": {"secret": "${env:SECRET}"},
            },
            "assertion": {
                "issuer": "https://assertion.example.com",
                "audiences": ["a"],
                "introspection": {
                    "client_id": "a",
                    "auth": "private_key_jwt",
                    "private_key": f"${{file:{key}}}",
                    "private_key_id": "k",
                    "private_key_algorithm": "ES256",
                    "assertion_audience": "https://assertion.example.com",
                },
            },
            "projected": {
                "issuer": "https://projected.example.com",
                "audiences": ["a"],
                "introspection": {"client_id": "a", "auth": "token_file", "assertion_file": "token"},
            },
        },
        "identity_headers": {"x-user": "{provider}:{sub}", "x-fixed": "{{{claims.a.b}}} {issuer}"},
        "guards": [{"name": "g", "hosts": ["a.example"], "paths": ["/admin/**"], "require": {"roles": "admin"}}],
        "rules": [
            {
                "name": "one",
                "hosts": ["a.example", "{tenant}.example", "[::1]"],
                "paths": ["/a/{b}/**"],
                "methods": ["GET", "POST"],
                "tokens_from": ["shop"],
                "require": {
                    "roles": {"any": ["reader", "orders:writer", {"client": "c", "role": "r"}]},
                    "groups": {"all": ["staff/**", "/it"]},
                    "scopes": "read",
                    "client_ids": {"any": ["web"]},
                    "claims": {"tenant": {"any": ["a", 1, True]}},
                    "networks": {"any": ["10.0.0.0/8", "::1"]},
                    "when": "claims.sub == path.b",
                },
                "token_in": ["authorization", {"header": "x-token"}, {"cookie": "t"}, {"query": "t"}],
                "accept": ["encoded_slash", "percent"],
                "identity_headers": {"x-user": "{issuer} {sub}"},
                "authorization": {"replace": "Bearer {sub}"},
                "response_headers": {"x-served-by": "us"},
                "answers": {
                    "401": {"status": 302, "location": "https://login.example/", "headers": {"x-a": "b"}},
                    "403": {"body": "no", "content_type": "text/plain"},
                },
            },
            {"name": "two", "hosts": "everywhere", "paths": ["/healthz"], "allow": "anyone"},
            {
                "name": "three",
                "hosts": ["hooks.other.example"],
                "paths": ["/**"],
                "any_of": [
                    {"tokens_from": "acme", "require": "any_token"},
                    {"tokens_from": "inline", "require": {"scopes": "x"}},
                ],
            },
        ],
        "hosts": {"a.example": "extends"},
        "cors": [
            {
                "hosts": ["a.example"],
                "origins": ["https://app.example.com"],
                "methods": ["GET"],
                "headers": ["authorization"],
                "expose": ["x-a"],
                "credentials": True,
                "max_age": "10m",
                "preflight": "pass",
            }
        ],
        "client_address": {"trusted_hops": 1},
        "server": {
            "door": "grpcio",
            "workers": 1,
            "grpc": [
                {"address": "127.0.0.1:9001", "tls": {"cert_file": cert, "key_file": key, "client_ca_file": cert}},
                {"address": "unix:/run/authz.sock"},
            ],
            "http": None,
            "deadline_ms": 1_000,
            "max_request_bytes": 65_536,
            "max_inflight": 10,
            "max_concurrent_streams": 10,
            "max_connection_age_s": 60,
            "max_connection_age_grace_s": 6,
            "drain_s": 1,
            "evidence_cache_bytes": 1_000_000,
            "log_decisions": "denies",
        },
    }


def compiled(text: str) -> Configuration | None:
    """Load a text, or None where it is refused; a problem names its file and says what is wrong, in one line."""
    path = ROOT / "tests/policies/valid/orders.yaml"
    try:
        return load_text(text, path=path, environ=ENVIRON)
    except ConfigError as error:
        problems = error.problems
    assert problems
    for problem in problems:
        assert problem.message.strip()
        assert problem.file == str(path)
        assert str(problem).isprintable()
    return None


def test_the_files_themselves_load(everything: dict[str, Any]) -> None:
    assert len(FILES) >= 4
    for text in (*TEXTS, json.dumps(everything)):
        load_text(text, path=ROOT / "tests/policies/valid/orders.yaml", environ=ENVIRON)


def test_everything_has_every_key(everything: dict[str, Any]) -> None:
    """So that what is spoilt below is each kind of value that there is."""
    used = {key for loc, _ in places(everything) for key in loc}
    parts: list[type[BaseModel]] = [RulesFile]
    for part in parts:
        for name, field in part.model_fields.items():
            assert name in used, f"{part.__name__}.{name}"
            parts += [its for its in parts_of(field.annotation) if its not in parts]
    assert len(parts) > 10


def parts_of(kind: Any) -> Iterator[type[BaseModel]]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind
    for inner in getattr(kind, "__args__", ()):
        yield from parts_of(inner)


def places(value: Any, loc: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield each value of a document with the way to it."""
    if loc:
        yield loc, value
    steps: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, inner in steps:
        yield from places(inner, (*loc, step))


def replaced(document: dict[str, Any], loc: tuple[Any, ...], odd: Any) -> str:
    document = copy.deepcopy(document)
    holder: Any = document
    for step in loc[:-1]:
        holder = holder[step]
    holder[loc[-1]] = odd
    return json.dumps(document, ensure_ascii=False)


def test_only_a_config_error_escapes_where_one_value_is_odd(everything: dict[str, Any]) -> None:
    """Each place gets its share of the odd values, each value its share of the places."""
    for at, (loc, value) in enumerate(places(everything)):
        for odd in ODD_VALUES[at % STRIDE :: STRIDE]:
            if value != odd:
                compiled(replaced(everything, loc, odd))


@settings(deadline=None, max_examples=150)
@given(data=st.data(), odd=st.text(max_size=12) | st.integers() | st.lists(st.text(max_size=3), max_size=2))
def test_only_a_config_error_escapes_where_one_value_is_any(
    data: st.DataObject, odd: Any, everything: dict[str, Any]
) -> None:
    loc, _ = data.draw(st.sampled_from(list(places(everything))))
    compiled(replaced(everything, loc, odd))


def test_only_a_config_error_escapes_where_a_key_is_missing_or_unknown(everything: dict[str, Any]) -> None:
    for loc, _ in places(everything):
        spoilt = json.loads(json.dumps(everything))
        holder: Any = spoilt
        for step in loc[:-1]:
            holder = holder[step]
        if isinstance(holder, dict):
            holder["odd\u2028key"] = holder.pop(loc[-1])
        else:
            holder.pop(loc[-1])
        compiled(json.dumps(spoilt))


@st.composite
def spoilt_texts(draw: st.DrawFn) -> str:
    """Delete, replace, insert or repeat a few tokens of a valid file."""
    tokens = list(draw(st.sampled_from(TOKENS)))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(tokens) - 1))
        width = draw(st.sampled_from([0, 1]))
        tokens[at : at + width] = draw(st.just([]) | st.lists(st.sampled_from([*ODD_TOKENS, *tokens]), max_size=2))
    return "".join(tokens)


@settings(deadline=None, max_examples=200)
@given(spoilt_texts())
def test_only_a_config_error_escapes_from_a_spoilt_file(text: str) -> None:
    compiled(text)


@settings(deadline=None, max_examples=100)
@given(junk=st.text(max_size=60), file=st.sampled_from(TEXTS))
@example(junk="\0", file=TEXTS[0])
@example(junk="\ud800", file=TEXTS[0])
def test_only_a_config_error_escapes_where_junk_follows(junk: str, file: str) -> None:
    compiled(file + junk)


@pytest.mark.parametrize("text", TEXTS, ids=[path.name for path in FILES])
def test_a_file_that_is_cut_anywhere_loads_or_is_refused(text: str) -> None:
    for end in range(len(text)):
        compiled(text[:end])


@pytest.mark.parametrize("text", ['a: "\\0"', '"\\0": a', 'a: ["x\\0y"]'])
def test_a_zero_byte_is_in_no_text(text: str) -> None:
    """Names of files end there for the system, and names of hosts for some readers."""
    with pytest.raises(ConfigError, match="1: a zero byte"):
        parse_document(text, file="f")


def test_a_bad_path_is_told_also_where_a_broader_host_has_rules() -> None:
    text = """
version: 1
rules:
  - {name: broad, hosts: ["*.example"], paths: ["/**"], allow: anyone}
  - {name: narrow, hosts: [a.example], paths: ["bad"], allow: anyone}
"""
    with pytest.raises(ConfigError) as caught:
        load_text(text, path=Path("rules.yaml"), environ={})
    assert [problem.message for problem in caught.value.problems] == ["`bad` does not start with `/`"]
    with pytest.raises(ConfigError) as caught:
        load_text(text + "hosts: {a.example: extends}\n", path=Path("rules.yaml"), environ={})
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize("name", ["secret", "client_secret", "private_key", "pem", "jwks"])
def test_a_secret_is_one_only_where_secrets_stand(name: str) -> None:
    """A provider, a claim, a host or a header may be called so."""
    text = f"""
version: 1
providers: {{{name}: {{issuer: "https://sso.example.com", audiences: [a]}}}}
identity_headers: {{x-{name.replace("_", "-")}: "{{sub}}"}}
rules:
  - {{name: {name}, hosts: [a.example], paths: ["/**"], tokens_from: {name}, require: {{claims: {{{name}: plain}}}}}}
"""
    configuration = load_text(text, path=Path("rules.yaml"), environ={})
    assert configuration.policy.rules[0].name == name
