"""The command line, as people call it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from authz.cli import main
from authz.curl import parse_curl, parse_json_request
from authz.model import Reason
from authz.servers.envoy import parse_check
from tests.fakes import Signer

ISSUER = "https://sso.example.com"
RULES = """
version: 1
providers:
  shop: {{issuer: "https://sso.example.com", audiences: [a], keys: {{jwks: {jwks}}}}}
  remote: {{issuer: "https://remote.example.com", audiences: [a]}}
identity_headers: {{x-user: "{{provider}}:{{sub}}"}}
guards:
  - {{name: admin, hosts: [a.example], paths: ["/admin/**"], require: {{roles: admin}}}}
rules:
  - {{name: public, hosts: [a.example], paths: ["/public"], allow: anyone}}
  - {{name: closed, hosts: [a.example], paths: ["/closed"], allow: nobody}}
  - {{name: maybe, hosts: [a.example], paths: ["/maybe"], allow: optional, tokens_from: shop}}
  - {{name: all, hosts: [a.example], paths: ["/**"], tokens_from: shop, methods: [GET],
      require: {{roles: reader, groups: staff, scopes: read, client_ids: web, when: "claims.n == 1"}}}}
  - name: both
    hosts: [a.example]
    paths: ["/both"]
    any_of:
      - {{tokens_from: shop, require: any_token}}
      - {{tokens_from: remote, require: any_token}}
server:
  grpc: [{{address: "0.0.0.0:9001"}}]
"""
PUBLIC = "version: 1\nrules: [{name: public, hosts: everywhere, paths: [/], allow: anyone}]\n"
CLAIMS: dict[str, Any] = {
    "iss": ISSUER, "aud": "a", "sub": "alice", "exp": 4_000_000_000, "roles": ["reader"], "groups": ["staff"],
    "scope": "read", "azp": "web", "n": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def signer() -> Signer:
    return Signer()


@pytest.fixture
def rules(signer: Signer, tmp_path: Path) -> str:
    file = tmp_path / "rules.yaml"
    file.write_text(RULES.format(jwks=json.dumps({"keys": [signer.jwk()]})))
    return str(file)


def run(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(main, arguments, input=stdin, catch_exceptions=False)


def curl(url: str, token: str = "", rest: str = "") -> str:
    header = f"-H 'authorization: Bearer {token}' " if token else ""
    return f"curl -s {header}{rest} http://a.example{url}"


def test_validate_prints_the_effective_table(rules: str) -> None:
    done = run("validate", rules)
    assert done.exit_code == 0
    assert "5 rules, 1 guards, 2 providers: good" in done.output
    assert "guard `admin` on a.example/admin/**: role admin" in done.output
    found = json.loads(run("validate", "--json", rules).output)
    assert [rule["rule"] for rule in found["rules"]] == ["public", "closed", "maybe", "all", "both"]
    assert found["rules"][3]["requires"].splitlines()[0] == "client web"
    assert found["rules"][2]["who"] == "tokens of shop or nobody"


def test_validate_tells_every_problem_of_every_file(rules: str, tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("version: 2\nrules: []\nmore: 1\n")
    done = run("validate", rules, str(bad))
    assert done.exit_code == 2
    assert done.output.count(f"{bad}:") == 3
    found = json.loads(run("validate", "--json", str(bad)).output)
    assert {its["path"] for its in found["problems"]} == {"version", "rules", "more"}


@pytest.mark.parametrize(
    ("url", "changes", "exit_code", "reason"),
    [
        ("/public", None, 0, None),
        ("/closed", None, 1, Reason.NOBODY),
        ("/maybe", None, 0, None),
        ("/maybe", {}, 0, None),
        ("/x", None, 1, Reason.NO_CREDENTIAL),
        ("/x", {}, 0, None),
        ("/x", {"exp": 1}, 1, Reason.EXPIRED),
        ("/x", {"roles": ["other"]}, 1, Reason.ROLE_MISSING),
        ("/x", {"groups": []}, 1, Reason.GROUP_MISSING),
        ("/x", {"scope": ""}, 1, Reason.SCOPE_MISSING),
        ("/x", {"azp": "app"}, 1, Reason.CLIENT_NOT_LISTED),
        ("/x", {"n": 2}, 1, Reason.CONDITION_FALSE),
        ("/admin/x", {}, 1, Reason.ROLE_MISSING),
        ("/both", {}, 0, None),
        ("/both", {"iss": "https://other.example.com"}, 1, Reason.ISSUER_MISMATCH),
        ("/a%2fb", {}, 1, Reason.PATH_ENCODED_SLASH),
    ],
)
def test_check_decides_and_says_why(
    url: str, changes: dict[str, Any] | None, exit_code: int, reason: Reason | None, rules: str, signer: Signer
) -> None:
    token = "" if changes is None else signer.sign(CLAIMS | changes)
    done = run("check", rules, "--json", "--curl", curl(url, token))
    assert done.exit_code == exit_code, done.output
    found = json.loads(done.output)
    assert found["decision"] == ("allow" if reason is None else "deny")
    assert found.get("reason") == (None if reason is None else reason.value)
    assert not token or token not in done.output
    text = run("check", rules, "--curl", curl(url, token)).output
    assert ("allow by rule" in text) is (reason is None)
    assert not token or token not in text


def test_check_shows_each_condition_with_what_was_found(rules: str, signer: Signer) -> None:
    text = run("check", rules, "--curl", curl("/x", signer.sign(CLAIMS | {"roles": ["other"], "n": 2}))).output
    assert "NO  require: role reader: found other" in text
    assert "yes require: scope read" in text
    assert "NO  require: when `claims.n == 1`" in text
    guard = run("check", rules, "--curl", curl("/admin/x", signer.sign(CLAIMS))).output
    assert "NO  guard `admin`: role admin: found reader" in guard
    allowed = run("check", rules, "--curl", curl("/x", signer.sign(CLAIMS))).output
    assert "set x-user: shop:alice" in allowed
    assert "the signature holds" in allowed


def test_check_without_keys_judges_the_claims_and_says_so(rules: str, signer: Signer) -> None:
    claims = {"iss": "https://remote.example.com", "aud": "a", "sub": "x", "exp": 4_000_000_000}
    text = run("check", rules, "--curl", curl("/both", signer.sign(claims))).output
    assert "the signature is not verified" in text
    opaque = run("check", rules, "--curl", curl("/both", "opaque")).output
    assert "no provider of this rule issues such tokens" in opaque


def test_check_takes_a_check_request(rules: str, tmp_path: Path) -> None:
    http = {"method": "GET", "host": "a.example", "path": "/public", "headers": {"x": "1"}}
    text = json.dumps({"attributes": {"request": {"http": http}}})
    assert run("check", rules, "--request", "-", stdin=text).exit_code == 0
    (tmp_path / "request.json").write_text(text)
    assert run("check", rules, "--request", str(tmp_path / "request.json")).exit_code == 0
    done = run("check", rules, "--request", "-", stdin="{}")
    assert done.exit_code == 1
    assert "deny not_http" in done.output
    for arguments in (("--request", "-"), ()):
        assert run("check", rules, *arguments, stdin="nonsense").exit_code == 2


def test_validate_online_asks_the_providers(rules: str) -> None:
    done = run("validate", "--online", rules)
    assert done.exit_code == 2
    assert "shop: good: 1 keys" in done.output
    assert "remote: BAD: keys" in done.output


def test_check_online_uses_the_live_keys(rules: str, signer: Signer) -> None:
    done = run("check", rules, "--online", "--curl", curl("/x", signer.sign(CLAIMS)))
    assert done.exit_code == 0
    assert "proved by provider `shop`" in done.output


def test_configurations_for_envoy_and_istio(rules: str) -> None:
    envoy = yaml.safe_load(run("envoy-config", rules).output)
    clusters = {its["name"]: its for its in envoy["static_resources"]["clusters"]}
    (endpoint,) = clusters["authz"]["load_assignment"]["endpoints"][0]["lb_endpoints"]
    assert endpoint["endpoint"]["address"]["socket_address"] == {"address": "127.0.0.1", "port_value": 9001}
    mesh, policy = yaml.safe_load_all(run("istio-config", rules).output)
    (provider,) = mesh["meshConfig"]["extensionProviders"]
    assert provider["envoyExtAuthzGrpc"]["port"] == 9001
    assert provider["envoyExtAuthzGrpc"]["failOpen"] is False
    assert policy["spec"] == {"action": "CUSTOM", "provider": {"name": provider["name"]}, "rules": [{}]}


def test_a_mesh_needs_an_address_that_its_proxies_can_reach(tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    listeners = ['{address: "unix:/run/authz.sock"}', '{address: "0.0.0.0:9009"}']
    for grpc, code in ((listeners, 0), (listeners[:1], 2)):
        file.write_text(f"{PUBLIC}server: {{grpc: [{', '.join(grpc)}]}}\n")
        done = run("istio-config", str(file))
        assert done.exit_code == code
        assert ("port: 9009" if code == 0 else "add a `host:port`") in done.output


def test_the_schema_is_json() -> None:
    assert json.loads(run("schema").output)["title"] == "authz rules file"


def test_a_file_that_cannot_be_used_ends_with_2(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text("version: 1\n")
    for arguments in (("serve",), ("envoy-config",), ("istio-config",), ("check", "--curl", "curl a.example")):
        done = run(*arguments, str(file))
        assert done.exit_code == 2
        assert "add `rules:`" in done.output


@pytest.mark.parametrize(
    ("text", "method", "path", "headers"),
    [
        ("curl http://a.example/x?y=z", "GET", ("x",), {}),
        ("curl -X POST -H 'A: b' a.example/x", "POST", ("x",), {"a": "b"}),
        ("curl -d '{}' http://a.example", "POST", (), {}),
        ("curl -I http://a.example/", "HEAD", (), {}),
        ("curl -b 'a=1' -A me --url http://a.example/x", "GET", ("x",), {"cookie": "a=1", "user-agent": "me"}),
        ("curl --oauth2-bearer t http://a.example/x", "GET", ("x",), {"authorization": "Bearer t"}),
        ("curl -sSk -H 'Host: a.example' http://127.0.0.1:10000/x", "GET", ("x",), {}),
        ("http://a.example/x", "GET", ("x",), {}),
    ],
)
def test_curl_commands(text: str, method: str, path: tuple[str, ...], headers: dict[str, str]) -> None:
    found = parse_check(parse_curl(text))
    assert (found.method, found.host.name, found.target.segments) == (method, "a.example", path)
    assert headers.items() <= found.headers.items()


@pytest.mark.parametrize(
    "text", ["", "curl", "curl 'unclosed", "curl -K file http://a", "curl http://a http://b", "curl -H"]
)
def test_curl_commands_that_are_not_understood(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_curl(text)


def test_json_that_is_no_check_request() -> None:
    with pytest.raises(ValueError, match="not a CheckRequest"):
        parse_json_request('{"nonsense": 1}')
