"""The command line, as people call it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from authz.cli import main
from authz.model import Reason
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
      - {{tokens_from: shop, require: {{roles: reader, claims: {{tier: gold}}}}}}
      - {{tokens_from: remote, require: any_token}}
server:
  grpc: [{{address: "0.0.0.0:9001"}}]
"""
PUBLIC = "version: 1\nrules: [{name: public, hosts: everywhere, paths: [/], allow: anyone}]\n"
CLAIMS: dict[str, Any] = {
    "iss": ISSUER, "aud": "a", "sub": "alice", "exp": 4_000_000_000, "roles": ["reader"], "groups": ["staff"],
    "scope": "read", "azp": "web", "n": 1, "tier": "gold",
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
    assert "5 rules, 1 guard, 2 providers: good" in done.output
    assert "guard `admin` on a.example/admin/**: role admin" in done.output
    assert (
        "rule all; hosts a.example; paths /**; methods GET; who tokens of shop; requires client web and" in done.output
    )


def test_validate_shows_what_each_branch_requires(rules: str) -> None:
    """What one provider's tokens need is nobody else's."""
    lines = run("validate", rules).output.splitlines()
    assert next(line for line in lines if line.startswith("rule both")).endswith(
        "who tokens of shop, remote; requires shop: role reader and claim tier: value 'gold' or remote: any token"
    )


def test_validate_prints_one_json_document_for_all_files(rules: str, tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("version: 2\nrules: []\nmore: 1\n")
    done = run("validate", "--json", rules, str(bad), rules)
    assert done.exit_code == 2
    first, second, third = json.loads(done.stdout)["files"]
    assert first == third
    assert (first["file"], first["good"], second["file"], second["good"]) == (rules, True, str(bad), False)
    assert first.keys() == second.keys()
    assert {its["path"] for its in second["problems"]} == {"version", "rules", "more"}
    assert first["problems"] == []
    by_name = {rule["rule"]: rule for rule in first["rules"]}
    assert list(by_name) == ["public", "closed", "maybe", "all", "both"]
    assert by_name["maybe"]["access"] == "optional"
    assert by_name["public"]["methods"] is None
    assert by_name["all"]["methods"] == ["GET"]
    assert by_name["both"]["branches"] == [
        {"provider": "shop", "requires": ["role reader", "claim tier: value 'gold'"]},
        {"provider": "remote", "requires": []},
    ]
    (guard,) = first["guards"]
    assert guard == {"guard": "admin", "line": 8, "hosts": ["a.example"], "paths": ["/admin/**"],
                     "requires": ["role admin"]}  # fmt: skip
    assert first["findings"] == []
    assert [its["provider"] for its in first["providers"]] == ["shop", "remote"]
    assert {its["online"] for its in first["providers"]} == {None}


def test_validate_notes_in_json_what_may_surprise(tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text(f"{PUBLIC[:-2]}, {{name: get, hosts: everywhere, paths: [/x], methods: [GET], allow: anyone}}, "
                    "{name: deep, hosts: everywhere, paths: ['/**'], allow: anyone}]\n")  # fmt: skip
    (found,) = json.loads(run("validate", "--json", str(file)).stdout)["files"]
    (finding,) = found["findings"]
    assert (finding["rule"], finding["line"], found["good"]) == ("get", 2, True)
    assert "`/x` has no rule for" in finding["text"]


def test_validate_tells_every_problem_of_every_file(rules: str, tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("version: 2\nrules: []\nmore: 1\n")
    done = run("validate", rules, str(bad))
    assert done.exit_code == 2
    assert done.output.count(f"{bad}:") == 3


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
        ("/both", {"iss": None}, 1, Reason.ISSUER_MISSING),
        ("/both", {"tier": "silver"}, 1, Reason.CLAIM_MISMATCH),
        ("/nowhere;a", None, 1, Reason.PATH_SEMICOLON),
        ("/a/../b", None, 1, Reason.PATH_DOT_SEGMENT),
        ("/a%2fb", {}, 1, Reason.PATH_ENCODED_SLASH),
    ],
)
def test_check_decides_and_says_why(
    url: str, changes: dict[str, Any] | None, exit_code: int, reason: Reason | None, rules: str, signer: Signer
) -> None:
    claims = {name: value for name, value in (CLAIMS | (changes or {})).items() if value is not None}
    token = "" if changes is None else signer.sign(claims)
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
    assert "yes require: scope read: found read" in text
    assert "yes require: group staff: found staff" in text
    assert "yes require: client web: found web" in text
    assert "NO  require: when `claims.n == 1`: found claims.n = 2" in text
    less = {name: value for name, value in CLAIMS.items() if name not in {"n", "azp", "roles"}}
    text = run("check", rules, "--curl", curl("/x", signer.sign(less))).output
    assert "NO  require: when `claims.n == 1`: cannot be judged: found no claims.n" in text
    assert "NO  require: client web: found none" in text
    assert "NO  require: role reader: found none" in text
    nobody = run("check", rules, "--curl", curl("/admin", rest="-X GET")).output
    assert "no_credential" in nobody
    guard = run("check", rules, "--curl", curl("/admin/x", signer.sign(CLAIMS))).output
    assert "NO  guard `admin`: role admin: found reader" in guard
    allowed = run("check", rules, "--curl", curl("/x", signer.sign(CLAIMS))).output
    assert "  upstream: set x-user: shop:alice" in allowed
    assert "the signature holds" in allowed


def test_check_without_keys_judges_the_claims_and_says_so(rules: str, signer: Signer) -> None:
    claims = {"iss": "https://remote.example.com", "aud": "a", "sub": "x", "exp": 4_000_000_000}
    text = run("check", rules, "--curl", curl("/both", signer.sign(claims))).output
    assert "the signature is not verified" in text
    opaque = run("check", rules, "--curl", curl("/both", "opaque"))
    assert opaque.exit_code == 1
    assert "deny 401 opaque_refused" in opaque.output


def test_check_takes_a_check_request(rules: str, tmp_path: Path) -> None:
    http = {"method": "GET", "host": "a.example", "path": "/public", "headers": {"x": "1"}}
    text = json.dumps({"attributes": {"request": {"http": http}}})
    assert run("check", rules, "--request", "-", stdin=text).exit_code == 0
    (tmp_path / "request.json").write_text(text)
    assert run("check", rules, "--request", str(tmp_path / "request.json")).exit_code == 0
    done = run("check", rules, "--request", "-", stdin="{}")
    assert done.exit_code == 1
    assert "deny 403 not_http" in done.output
    found = json.loads(run("check", rules, "--json", "--request", "-", stdin="{}").stdout)
    assert (found["decision"], found["reason"], found["status"]) == ("deny", "not_http", 403)
    assert found["detail"] == found["steps"][0]["text"]
    for arguments in (("--request", "-"), ()):
        assert run("check", rules, *arguments, stdin="nonsense").exit_code == 2


def test_validate_online_asks_the_providers(rules: str, tmp_path: Path) -> None:
    done = run("validate", "--online", rules)
    assert done.exit_code == 2
    assert "shop: good: 1 keys" in done.output
    assert "remote: BAD: keys" in done.output
    token = tmp_path / "token"
    token.write_text("opaque\n")
    found = json.loads(run("validate", "--online", "--json", "--token-file", str(token), rules, rules).stdout)
    assert len(found["files"]) == 2
    for file in found["files"]:
        online = {its["provider"]: its["online"] for its in file["providers"]}
        assert file["good"] is False
        assert online["shop"][0] == {"good": True, "text": "1 keys"}
        assert online["remote"][0]["good"] is False


def test_what_is_logged_never_stands_between_what_was_asked_for(rules: str, signer: Signer) -> None:
    """The dead provider is told of on standard error; standard output is one document."""
    for arguments in (("check", rules, "--curl", curl("/x", signer.sign(CLAIMS))), ("validate", rules)):
        done = run(*arguments, "--online", "--json")
        assert json.loads(done.stdout)
        assert "keys_failed" in done.stderr
        assert "keys_failed" not in run(*arguments, "--online").stdout


def test_check_online_uses_the_live_keys(rules: str, signer: Signer) -> None:
    done = run("check", rules, "--online", "--curl", curl("/x", signer.sign(CLAIMS)))
    assert done.exit_code == 0
    assert "proved by provider `shop`" in done.output


OPEN = """
version: 1
providers:
  shop:
    issuer: "https://sso.example.com"
    audiences: [a]
    keys: {{jwks: {jwks}}}
    introspection: {{client_id: c, client_secret: "${{env:PATH}}", endpoint: "https://sso.example.com/i", {tokens}}}
rules: [{{name: r, hosts: everywhere, paths: ["/**"], tokens_from: shop, require: any_token}}]
"""


@pytest.mark.parametrize("tokens", ["opaque", "lightweight", "all"])
def test_what_only_the_provider_can_tell_stays_open_offline(tokens: str, signer: Signer, tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text(OPEN.format(jwks=json.dumps({"keys": [signer.jwk()]}), tokens=f"tokens: {tokens}"))
    light = {"iss": ISSUER, "exp": 4_000_000_000}
    token = "opaque" if tokens == "opaque" else signer.sign(light)
    done = run("check", str(file), "--curl", curl("/x", token))
    assert done.exit_code == 3
    assert "only provider `shop` can tell: ask it with --online\nundecided" in done.output
    found = json.loads(run("check", str(file), "--json", "--curl", curl("/x", token)).stdout)
    assert (found["decision"], found["rule"], found["reason"]) == ("undecided", "r", None)
    forged = signer.sign(light)[:-8] + "AAAAAAAA"
    if tokens != "opaque":
        assert run("check", str(file), "--curl", curl("/x", forged)).exit_code == 1
        assert "expired" in run("check", str(file), "--curl", curl("/x", signer.sign(light | {"exp": 1}))).output


MEMBERS = {
    "decision", "rule", "guard", "status", "reason", "detail", "meaning", "remedy", "principal", "steps", "headers",
    "response_headers", "remove_query",
}  # fmt: skip
EVERYTHING = """
version: 1
providers:
  shop: {{issuer: "https://sso.example.com", audiences: [a], keys: {{jwks: {jwks}}}}}
identity_headers: {{x-user: "{{sub}}"}}
guards:
  - {{name: inside, hosts: everywhere, paths: ["/**"], require: {{networks: 127.0.0.0/8}}}}
rules:
  - name: r
    hosts: everywhere
    paths: ["/a/{{user}}"]
    tokens_from: shop
    token_in: [{{query: access_token}}, authorization]
    authorization: {{replace: "{{sub}}-{{claims.n}}"}}
    response_headers: {{x-served-by: authz}}
    require:
      roles: reader
      claims: {{tier: gold}}
      when: "claims.sub == path.user && claims.n == 1"
"""


@pytest.fixture
def everything(signer: Signer, tmp_path: Path) -> str:
    file = tmp_path / "everything.yaml"
    file.write_text(EVERYTHING.format(jwks=json.dumps({"keys": [signer.jwk()]})))
    return str(file)


def test_the_json_of_an_allow_says_all_that_envoy_is_told(everything: str, signer: Signer) -> None:
    token = signer.sign(CLAIMS)
    url = f"curl -b 'session=s3cret' 'http://a.example/a/alice?access_token={token}&x=1'"
    done = run("check", everything, "--json", "--curl", url)
    found = json.loads(done.stdout)
    assert done.exit_code == 0
    assert found.keys() == MEMBERS
    assert (found["decision"], found["rule"]) == ("allow", "r")
    assert all(found[name] is None for name in ("guard", "status", "reason", "detail", "meaning", "remedy"))
    assert found["principal"] == {"provider": "shop", "issuer": ISSUER, "subject": "alice", "client": "web"}
    headers = {its["name"]: its for its in found["headers"]}
    assert headers["x-user"] == {"action": "set", "name": "x-user", "value": "alice"}
    assert headers["x_user"] == {"action": "remove", "name": "x_user", "value": None}
    assert headers["authorization"] == {"action": "set", "name": "authorization", "value": "[hidden]"}
    assert found["response_headers"] == [{"action": "set", "name": "x-served-by", "value": "authz"}]
    assert found["remove_query"] == ["access_token"]
    conditions = {step["text"]: step for step in found["steps"] if step["found"] is not None}
    assert {text: step["found"] for text, step in conditions.items()} == {
        "network 127.0.0.0/8": {"address": "127.0.0.1"},
        "role reader": {"roles": ["reader"]},
        "claim tier: value 'gold'": {"claims.tier": "gold"},
        "when `claims.sub == path.user && claims.n == 1`": {
            "claims.n": 1, "claims.sub": "alice", "path.user": "alice"
        },
    }  # fmt: skip
    assert all(step["held"] is True and step["missing"] == [] for step in conditions.values())
    text = run("check", everything, "--curl", url).stdout
    assert "  upstream: set authorization: [hidden]" in text
    assert "  upstream: remove query parameter access_token" in text
    assert "  client: set x-served-by: authz" in text
    for output in (done.stdout, text):
        assert token not in output
        assert "alice-1" not in output
        assert "s3cret" not in output


def test_the_json_of_a_deny_says_all_that_envoy_is_told(everything: str, signer: Signer) -> None:
    token = signer.sign({name: value for name, value in CLAIMS.items() if name != "n"} | {"roles": ["other"]})
    done = run("check", everything, "--json", "--curl", curl("/a/alice", token))
    found = json.loads(done.stdout)
    assert done.exit_code == 1
    assert found.keys() == MEMBERS
    assert (found["decision"], found["rule"], found["guard"]) == ("deny", "r", None)
    assert (found["status"], found["reason"], found["detail"]) == (403, "role_missing", "needs role reader")
    assert "role" in found["meaning"]
    assert found["remedy"]
    assert found["principal"]["subject"] == "alice"
    assert found["headers"] == found["remove_query"] == []
    assert {"action": "set", "name": "cache-control", "value": "no-store"} in found["response_headers"]
    steps = {step["text"]: step for step in found["steps"]}
    assert steps["role reader"] == {
        "stage": "require", "text": "role reader", "held": False, "reason": "role_missing",
        "found": {"roles": ["other"]}, "missing": [],
    }  # fmt: skip
    failed = steps["when `claims.sub == path.user && claims.n == 1`"]
    assert (failed["held"], failed["reason"], failed["missing"]) == (False, "condition_error", ["claims.n"])
    assert steps["claim tier: value 'gold'"]["held"] is True
    assert token not in done.stdout


def test_a_guard_is_named_and_a_request_refused_unread_is_json_too(rules: str, signer: Signer) -> None:
    found = json.loads(run("check", rules, "--json", "--curl", curl("/admin/x", signer.sign(CLAIMS))).stdout)
    assert (found["guard"], found["rule"], found["reason"]) == ("admin", "all", "role_missing")
    found = json.loads(run("check", rules, "--json", "--curl", curl("/a/..")).stdout)
    assert found.keys() == MEMBERS
    assert (found["reason"], found["status"], found["rule"]) == ("path_dot_segment", 400, None)
    assert [(step["stage"], step["held"]) for step in found["steps"]] == [("request", False)]


def test_a_request_larger_than_the_service_reads_is_refused_as_the_service_does(tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text(f"{PUBLIC}server: {{max_request_bytes: 1024}}\n")
    for size, reason in ((100, None), (2_000, Reason.REQUEST_TOO_LARGE)):
        found = json.loads(run("check", str(file), "--json", "--curl", curl("/", rest=f"-H 'x: {'a' * size}'")).stdout)
        assert found["reason"] == reason


def test_what_a_token_says_cannot_steer_the_terminal(rules: str, signer: Signer) -> None:
    text = run("check", rules, "--curl", curl("/x", signer.sign(CLAIMS | {"roles": ["\x1b[2J\u202e"]}))).stdout
    assert "\x1b" not in text
    assert "found \\x1b[2J\\u202e" in text


def test_the_readme_shows_what_is_printed(signer: Signer) -> None:
    root = Path(__file__).parent.parent
    block = re.search(r"```console\n\$ authz check [^\n]*\n(.*?)```", (root / "README.md").read_text(), re.DOTALL)
    assert block is not None
    claims = {"iss": "https://sso.example.com/realms/shop", "aud": "orders-api", "typ": "Bearer", "sub": "x",
              "exp": 4_000_000_000, "realm_access": {"roles": ["guest"]}}  # fmt: skip
    command = f"curl -H 'authorization: Bearer {signer.sign(claims)}' http://shop.example.com/orders/7"
    done = run("check", str(root / "examples/quickstart.yaml"), "--curl", command)
    assert re.sub(r"of \d+ char", "of 912 char", done.stdout) == block[1]


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "--curl", ""),
        ("check", "--curl", "curl 'http://a.example"),
        ("check", "--curl", "curl http://a.example/\udc80"),
        ("check", "--request", "LATIN"),
        ("check", "--request", "HUGE"),
        ("check", "--request", "/"),
        ("check", "--request", "missing.json"),
        ("check", "--request", "LATIN", "--curl", "curl a"),
        ("validate", "--online", "--token-file", "LATIN"),
        ("validate", "--online", "--token-file", "HUGE"),
        ("validate", "--online", "--token-file", "EMPTY"),
        ("validate", "--online", "--token-file", "/proc/self/mem"),
        ("validate", "--token-file", "TOKEN"),
        ("envoy-config", "--upstream", "nonsense"),
        ("envoy-config", "--listen", "nonsense"),
        ("envoy-config", "--ca-file", "/ca.pem"),
        ("istio-config", "--client-cert", "/c.pem"),
    ],
)
def test_odd_input_is_a_usage_error_and_no_traceback(arguments: tuple[str, ...], rules: str, tmp_path: Path) -> None:
    files = {"LATIN": "\u00e9".encode("latin-1"), "EMPTY": b" \n", "TOKEN": b"t", "HUGE": b"a" * 40_000}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    done = run(*(str(tmp_path / its) if its in files else its for its in arguments), rules)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert "Usage:" in done.stderr


def test_the_schema_is_json() -> None:
    assert json.loads(run("schema").output)["title"] == "authz rules file"


def test_a_file_that_cannot_be_used_ends_with_2(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text("version: 1\n")
    for arguments in (("serve",), ("envoy-config",), ("istio-config",), ("check", "--curl", "curl a.example")):
        done = run(*arguments, str(file))
        assert done.exit_code == 2
        assert "add `rules:`" in done.output
