"""What `authz istio-config` writes leaves no request out that a rule could judge (invariant NOTHING-FALLS-OUT)."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from hypothesis import example, given, settings
from hypothesis import strategies as st

from authz.cli import main
from authz.config import load_text
from authz.core.hosts import broader_patterns, parse_host_pattern
from authz.core.path import parse_host
from authz.core.policy import Policy
from authz.istio_config import Workloads, parse_labels, render_istio_config, spell_hosts
from authz.model import Rejected

LABELS = st.sampled_from(["shop", "example", "com", "a", "b-c", "xn--bcher-kva"])
NAMES = st.lists(LABELS, min_size=1, max_size=4).map(".".join) | st.just("10.1.2.3")
PATTERNS = NAMES | NAMES.map("*.{}".format) | NAMES.map("{{t}}.{}".format) | st.sampled_from(["[::1]", "[2001:db8::2]"])
ENDS = st.sampled_from(["", ".", ":80", ":8443", ".:80", "..", ":", ":x", ".evil.example", ":80.evil.example"])


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments, catch_exceptions=False)


def compile_policy(hosts: list[str], *, everywhere: bool, cors: list[str], guarded: list[str] | None = None) -> Policy:
    """Compile a rule for each host, guards and a part of `cors` for others. Where one hides another it says so."""
    patterns = {its.key: its for its in map(parse_host_pattern, hosts)}
    rules: list[dict[str, Any]] = [
        {"name": f"r{number}", "hosts": [str(its) if ":" not in its.name else f"[{its.name}]"], "paths": ["/**"],
         "allow": "nobody"}
        for number, its in enumerate(patterns.values())
    ]  # fmt: skip
    if everywhere or not rules:
        rules.append({"name": "all", "hosts": "everywhere", "paths": ["/healthz"], "allow": "anyone"})
    hiding = {str(its): "replaces" for its in patterns.values() if patterns.keys() & set(broader_patterns(its))}
    file: dict[str, Any] = {"version": 1, "rules": rules} | ({"hosts": hiding} if hiding else {})
    if guarded:
        own = {its.key: its for its in map(parse_host_pattern, guarded)}
        file["guards"] = [
            {"name": "g", "hosts": [str(its) if ":" not in its.name else f"[{its.name}]" for its in own.values()],
             "paths": ["/**"], "require": {"networks": "10.0.0.0/8"}}
        ]  # fmt: skip
    if cors:
        unique = {its.key: str(its) for its in map(parse_host_pattern, cors)}
        file["cors"] = [{"hosts": [*unique.values()], "origins": ["https://app.example"], "methods": ["GET"]}]
    return load_text(json.dumps(file), path=Path("rules.yaml"), environ={}).policy


def matches(pattern: str, value: str) -> bool:
    """Match as istiod has Envoy do it: exactly, by prefix or by suffix, without case."""
    wanted, given_value = pattern.lower(), value.lower()
    if wanted == "*":
        return given_value != ""
    if wanted[0] == "*":
        return given_value.endswith(wanted[1:])
    if wanted[-1] == "*":
        return given_value.startswith(wanted[:-1])
    return wanted == given_value


def is_asked(policy: dict[str, Any], host: str) -> bool:
    """Say whether a written policy matches any request with this Host header; only hosts may narrow it."""
    for rule in policy["spec"]["rules"]:
        assert set(rule) <= {"to"}
        operations = [to["operation"] for to in rule.get("to", [{"operation": {}}])]
        for operation in operations:
            assert set(operation) <= {"hosts"}, "nothing but hosts is written"
            if "hosts" not in operation or any(matches(pattern, host) for pattern in operation["hosts"]):
                return True
    return False


def write(policy: Policy) -> dict[str, Any]:
    """Return the policy that `--hosts` writes."""
    try:
        hosts = spell_hosts(policy)
    except ValueError:
        hosts = ()
    text = render_istio_config(
        service="authz", port=9001, workloads=Workloads(namespace="shop"), timeout_ms=1_250, hosts=hosts
    )
    _, written = yaml.safe_load_all(text)
    assert isinstance(written, dict)
    return written


def spell(name: str, end: str, flips: list[bool]) -> str:
    """Write a name as a client may."""
    return "".join(char.upper() if flip else char for char, flip in zip(name, flips * len(name), strict=False)) + end


@settings(deadline=None)
@given(
    hosts=st.lists(PATTERNS, max_size=4),
    everywhere=st.booleans(),
    cors=st.lists(NAMES | NAMES.map("*.{}".format), max_size=2),
    guarded=st.lists(PATTERNS, max_size=2),
    name=NAMES | st.sampled_from(["[::1]", "[0:0:0:0:0:0:0:1]"]),
    end=ENDS,
    flips=st.lists(st.booleans(), min_size=1, max_size=8),
)
@example(hosts=["shop.example"], everywhere=False, cors=[], guarded=[], name="shop.example", end=":80", flips=[False])
@example(hosts=["shop.example"], everywhere=False, cors=[], guarded=[], name="shop.example", end=".:80", flips=[True])
@example(hosts=["shop.example", "*.a"], everywhere=False, cors=[], guarded=[], name="b-c.a", end=":80", flips=[False])
@example(hosts=["[::1]"], everywhere=False, cors=[], guarded=[], name="[0:0:0:0:0:0:0:1]", end="", flips=[False])
@example(hosts=["shop.example"], everywhere=True, cors=[], guarded=[], name="other", end="", flips=[False])
@example(hosts=["shop.example"], everywhere=False, cors=[], guarded=["a"], name="a", end="", flips=[False])
@example(hosts=["shop.example"], everywhere=False, cors=["a"], guarded=[], name="a", end="", flips=[False])
def test_whatever_a_rule_could_judge_is_asked_about(
    *, hosts: list[str], everywhere: bool, cors: list[str], guarded: list[str], name: str, end: str, flips: list[bool]
) -> None:
    policy = compile_policy(hosts, everywhere=everywhere, cors=cors, guarded=guarded)
    header = spell(name, end, flips)
    try:
        host = parse_host(header)
    except Rejected:
        return
    judging = (policy.tables, policy.cors, policy.guard_tables)
    if any(index.match_first(host.name) is not None for index in judging):
        assert is_asked(write(policy), header)


def test_a_host_that_falls_out_would_be_seen() -> None:
    written = {"spec": {"rules": [{"to": [{"operation": {"hosts": ["shop.example"]}}]}]}}
    assert is_asked(written, "SHOP.example")
    assert not is_asked(written, "shop.example:80")


@pytest.mark.parametrize(
    ("hosts", "everywhere", "why"),
    [
        (["shop.example"], True, "some rule or guard is for `everywhere`"),
        (["*.shop.example"], False, "`*.shop.example` with a port cannot be written in Istio"),
        (["{t}.shop.example"], False, "`*.shop.example` with a port cannot be written in Istio"),
        (["[::1]"], False, "`[::1]` has many spellings"),
    ],
)
def test_hosts_that_cannot_be_written_are_said(hosts: list[str], *, everywhere: bool, why: str) -> None:
    with pytest.raises(ValueError, match=re.escape(why)):
        spell_hosts(compile_policy(hosts, everywhere=everywhere, cors=[]))


RULES = "version: 1\nrules: [{name: shop, hosts: [shop.example, api.example], paths: [/**], allow: anyone}]\n"


@pytest.fixture
def file(tmp_path: Path) -> str:
    (tmp_path / "rules.yaml").write_text(RULES)
    return str(tmp_path / "rules.yaml")


def printed(file: str, *options: str) -> dict[str, Any]:
    done = run("istio-config", file, *options)
    assert done.exit_code == 0, done.stderr
    _, policy = yaml.safe_load_all(done.stdout)
    assert isinstance(policy, dict)
    spec: dict[str, Any] = policy["spec"]
    return spec


def test_every_request_is_asked_about_if_nothing_is_said(file: str) -> None:
    assert printed(file) == {"action": "CUSTOM", "provider": {"name": "authz"}, "rules": [{}]}


def test_the_hosts_of_the_rules_in_every_spelling(file: str) -> None:
    (rule,) = printed(file, "--hosts", "--gateway", "public")["rules"]
    assert rule == {
        "to": [
            {
                "operation": {
                    "hosts": [
                        *("api.example", "api.example:*", "api.example.", "api.example.:*"),
                        *("shop.example", "shop.example:*", "shop.example.", "shop.example.:*"),
                    ]
                }
            }
        ]
    }


def test_hosts_that_would_leave_something_out_are_not_written(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(RULES.replace("api.example", '"*.example"').replace("[shop.example, ", "["))
    done = run("istio-config", str(tmp_path / "rules.yaml"), "--hosts")
    assert done.stdout.startswith("# --hosts: `*.example` with a port cannot be written in Istio")
    assert list(yaml.safe_load_all(done.stdout))[1]["spec"]["rules"] == [{}]


@pytest.mark.parametrize(
    ("options", "chosen"),
    [
        (("--selector", "app=orders, tier=web"), {"selector": {"matchLabels": {"app": "orders", "tier": "web"}}}),
        (
            ("--gateway", "public"),
            {"targetRefs": [{"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "public"}]},
        ),
        (("--waypoint-for", "orders"), {"targetRefs": [{"group": "", "kind": "Service", "name": "orders"}]}),
    ],
)
def test_workloads_are_chosen_by_one_option(options: tuple[str, ...], chosen: dict[str, Any], file: str) -> None:
    spec = printed(file, *options, "--namespace", "shop")
    assert {key: spec[key] for key in spec if key in {"selector", "targetRefs"}} == chosen
    assert spec["rules"] == [{}]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--selector", "app=a", "--gateway", "b"), "name one of them"),
        (("--gateway", "a", "--waypoint-for", "b"), "name one of them"),
        (("--hosts", "--waypoint-for", "b"), "leave out --hosts"),
        (("--selector", "app"), "is no selector"),
        (("--selector", "app=a,"), "is no selector"),
        (("--selector", "app=a,app=b"), "is no selector"),
        (("--selector", "-app=a"), "is no selector"),
        (("--gateway", ""), "--gateway is empty"),
        (("--namespace", ""), "--namespace is empty"),
        (("--waypoint-for", ""), "--waypoint-for is empty"),
    ],
)
def test_what_cannot_be_meant_is_a_usage_error(options: tuple[str, ...], message: str, file: str) -> None:
    done = run("istio-config", file, *options)
    assert done.exit_code == 2
    assert message in done.stderr


def test_labels_have_the_form_that_kubernetes_takes() -> None:
    assert parse_labels("gateway.networking.k8s.io/gateway-name=a.b_c") == {
        "gateway.networking.k8s.io/gateway-name": "a.b_c"
    }


@pytest.mark.parametrize("options", [(), ("--hosts",), ("--gateway", "public", "--hosts"), ("--selector", "app=a")])
def test_istio_check_finds_nothing_in_what_is_printed(options: tuple[str, ...], file: str, tmp_path: Path) -> None:
    (tmp_path / "mesh.yaml").write_text(run("istio-config", file, *options).stdout)
    done = run("istio-check", str(tmp_path / "mesh.yaml"), "--rules", file, "--json")
    assert done.exit_code == 0
    assert {its["finding"] for its in json.loads(done.stdout)["findings"]} == {"not_given"}
