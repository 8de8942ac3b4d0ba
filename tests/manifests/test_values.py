"""Values that cannot be meant are refused by helm, with a message that says why; the nearest good ones are taken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.manifests.conform import check_objects
from tests.manifests.render import CHART, KUBERNETES, MANIFESTS, read_objects, render_chart, run_helm

RULES: Final = (MANIFESTS / "base/rules.yaml").read_text()
TLS: Final = 'grpc: [{address: "0.0.0.0:9001", tls: {cert_file: /c, key_file: /k}}]'
BARE: Final = RULES[: RULES.index("server:")]
ELSEWHERE: Final = 'grpc: [{address: "0.0.0.0:9101"}]'


def rules(server: str) -> str:
    """Return the rules with one more line in their part `server`."""
    return f"{RULES}  {server}\n"


CASES: Final[dict[str, tuple[dict[str, Any], dict[str, Any], str]]] = {
    "an unknown value": ({"replica": 3}, {"replicas": 3}, "additional properties 'replica' not allowed"),
    "an unknown value within": (
        {"image": {"tagg": "1"}},
        {"image": {"tag": "1"}},
        "at '/image': additional properties 'tagg' not allowed",
    ),
    "no pod": ({"replicas": 0}, {"replicas": 2}, "at '/replicas': minimum: got 0, want 1"),
    "a number as a text": ({"replicas": "3"}, {"replicas": 3}, "at '/replicas': got string, want integer"),
    "a tag that moves": ({"image": {"tag": "latest"}}, {"image": {"tag": "0.1"}}, "at '/image/tag': 'not' failed"),
    "half a digest": (
        {"image": {"digest": "sha256:12"}},
        {"image": {"digest": "sha256:" + "0" * 64}},
        "at '/image/digest': 'sha256:12' does not match pattern",
    ),
    "rules as a mapping": (
        {"rules": yaml.safe_load(RULES)},
        {"rules": RULES},
        "at '/rules': got object, want string",
    ),
    "another way to ask": ({"probes": "exec"}, {"probes": "http"}, "at '/probes': value must be one of"),
    "no memory limit": (
        {"resources": {"limits": {"memory": None}}},
        {"resources": {"limits": {"memory": "1Gi"}}},
        "at '/resources/limits': missing property 'memory'",
    ),
    "a label that selects": (
        {"podLabels": {"app.kubernetes.io/name": "other"}},
        {"podLabels": {"team": "edge"}},
        "invalid propertyName 'app.kubernetes.io/name'",
    ),
    "the workers' folder": (
        {"env": [{"name": "TMPDIR", "value": "/x"}]},
        {"env": [{"name": "HOOKS_SECRET", "value": "x"}]},
        "at '/env/0/name': 'not' failed",
    ),
    "a namespace that is none": (
        {"networkPolicy": {"callers": ["*"]}},
        {"networkPolicy": {"callers": ["edge"]}},
        "at '/networkPolicy/callers/0': '*' does not match pattern",
    ),
    "text that is no yaml": ({"rules": "a: [b"}, {"rules": RULES}, "`rules` is no YAML: "),
    "rules without rules": ({"rules": "version: 1"}, {"rules": RULES}, "`rules` is the whole rules file as a text"),
    "killed before it has drained": (
        {"terminationGracePeriodSeconds": 29},
        {"terminationGracePeriodSeconds": 30},
        "`terminationGracePeriodSeconds` is 29, and a pod needs 30: `preStopSleepSeconds`, `server.drain_s` (20) and 5",
    ),
    "killed before it has drained as the rules say": (
        {"rules": rules("drain_s: 36")},
        {"rules": rules("drain_s: 35")},
        "`terminationGracePeriodSeconds` is 45, and a pod needs 46",
    ),
    "kubelet before tls": (
        {"rules": rules(TLS)},
        {"rules": rules(TLS), "probes": "http"},
        "kubelet asks gRPC without TLS, and `server.grpc` of the rules has `tls`: set `probes: http`",
    ),
    "another port": (
        {"rules": rules(ELSEWHERE)},
        {"rules": rules(ELSEWHERE), "ports": {"grpc": 9101}},
        "`ports.grpc` is 9001, and no address under `server.grpc` of the rules has that port",
    ),
    "another port for figures": (
        {"ports": {"http": 9102}},
        {"ports": {"http": 9102}, "rules": rules("http: 0.0.0.0:9102")},
        "`ports.http` is 9102, and `server.http` of the rules is `0.0.0.0:9002`",
    ),
    "figures that nobody serves": (
        {"rules": rules("http: null"), "serviceMonitor": {"enabled": True}},
        {"rules": rules("http: null")},
        "`server.http` of the rules is null",
    ),
    "a listener as a mapping": (
        {"rules": rules("grpc: {address: '0.0.0.0:9001'}")},
        {"rules": rules("grpc: [{address: '0.0.0.0:9001'}]")},
        "`server.grpc` of the rules is a list of `{address: …}`",
    ),
    "a listener without its key": (
        {"rules": rules("grpc: ['0.0.0.0:9001']")},
        {"rules": rules("grpc: [{address: '0.0.0.0:9001'}]")},
        "`server.grpc` of the rules is a list of `{address: …}`",
    ),
    "a server that is no mapping": (
        {"rules": BARE + "server: fast\n"},
        {"rules": BARE + "server: {workers: 1}\n"},
        "`server` of the rules is a mapping",
    ),
    "a worker for each core": (
        {"rules": BARE},
        {"rules": BARE, "resources": {"limits": {"cpu": 2}}},
        "`server.workers` of the rules is not said",
    ),
    "another port than the rules that are seen": (
        {"ports": {"grpc": 9101}},
        {"ports": {"grpc": 9101}, "existingConfigMap": "ours"},
        "`ports.grpc` is 9101, and no address under `server.grpc` of the rules has that port",
    ),
    "a stamp of ours": (
        {"podAnnotations": {"checksum/server": "x"}},
        {"podAnnotations": {"checksum/rules": "x"}},
        "invalid propertyName 'checksum/server'",
    ),
    "a label of ours": (
        {"serviceMonitor": {"labels": {"app.kubernetes.io/name": "x"}}},
        {"serviceMonitor": {"labels": {"release": "x"}}},
        "invalid propertyName 'app.kubernetes.io/name'",
    ),
    "a volume of ours": (
        {"extraVolumes": [{"name": "tmp", "emptyDir": {}}]},
        {"extraVolumes": [{"name": "certificates", "emptyDir": {}}]},
        "at '/extraVolumes/0/name': 'not' failed",
    ),
    "a secret that is no name": (
        {"existingSecret": "a..b"},
        {"existingSecret": "a.b"},
        "at '/existingSecret': 'a..b' does not match pattern",
    ),
    "a namespace with a dot": (
        {"networkPolicy": {"dns": "kube.system"}},
        {"networkPolicy": {"dns": "kube-system"}},
        "at '/networkPolicy/dns': 'kube.system' does not match pattern",
    ),
    "a class that is no name": (
        {"priorityClassName": "High"},
        {"priorityClassName": "high"},
        "at '/priorityClassName': 'High' does not match pattern",
    ),
    "a budget that lets no node go": (
        {"podDisruptionBudget": {"minAvailable": 2}},
        {"podDisruptionBudget": {"minAvailable": 2}, "replicas": 3},
        "`podDisruptionBudget.minAvailable` is 2 of 2 pods",
    ),
}


def made(values: dict[str, Any], folder: Path) -> tuple[int, str]:
    file = folder / "values.json"
    file.write_text(json.dumps(values))
    done = render_chart("--values", str(file))
    return done.returncode, done.stderr


@pytest.mark.e2e
@pytest.mark.timeout(1_500)  # the first time, helm is built
@pytest.mark.parametrize("what", CASES)
def test_a_bad_value_is_refused_and_a_good_one_taken(what: str, tmp_path: Path) -> None:
    bad, good, complaint = CASES[what]
    code, said = made(bad, tmp_path)
    assert code != 0
    assert complaint in said
    assert made(good, tmp_path) == (0, "")


@pytest.mark.e2e
@pytest.mark.timeout(1_500)
@pytest.mark.parametrize("name", ["123", "no", "1e3", "0x1f", "null"])
def test_a_name_that_yaml_takes_for_something_else_stays_a_name(name: str, tmp_path: Path) -> None:
    """Helm and the API server read YAML 1.1, in which also `no` is none: whatever is no text is refused there."""
    everywhere: dict[str, Any] = {
        "existingConfigMap": name,
        "existingSecret": name,
        "priorityClassName": name,
        "serviceAccount": {"name": name},
        "imagePullSecrets": [{"name": name}],
        "podAnnotations": {"note": name},
        "podLabels": {"team": name},
        "nodeSelector": {"pool": name},
        "service": {"annotations": {"note": name}},
        "networkPolicy": {
            "callers": [name],
            "scrapers": [name],
            "providers": [{"namespace": name, "port": 8080}],
            "dns": name,
            "controlPlane": name,
        },
    }
    file = tmp_path / "values.json"
    file.write_text(json.dumps(everywhere))
    done = render_chart("--skip-tests", "--values", str(file))
    assert done.returncode == 0, done.stderr
    objects = read_objects(done.stdout)
    assert sum(_count(its, name) for its in objects) == 15
    assert check_objects(done.stdout) == []


@pytest.mark.e2e
@pytest.mark.timeout(1_500)
def test_a_release_and_a_namespace_may_look_like_numbers() -> None:
    """But a Service's name begins with a letter."""
    options = ("--kube-version", KUBERNETES, "--namespace", "1e3")
    refused = run_helm("template", "123", str(CHART), *options)
    assert "a Service cannot be called `123-authz`: set `fullnameOverride`" in refused.stderr
    done = run_helm("template", "123", str(CHART), *options, "--set", "fullnameOverride=no")
    assert done.returncode == 0, done.stderr
    names = {(its["metadata"]["namespace"], its["metadata"]["name"]) for its in read_objects(done.stdout)}
    assert names == {("1e3", "no"), ("1e3", "no-rules"), ("1e3", "no-test")}
    assert check_objects(done.stdout) == []


def _count(its: Any, name: str) -> int:
    """Return how often a text is somewhere within."""
    if isinstance(its, dict | list):
        return sum(_count(inner, name) for inner in (its.values() if isinstance(its, dict) else its))
    return int(its == name)


def test_the_schema_knows_the_values_that_there_are_and_no_others() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    # A limit of CPU may be set, and is not; what a chart around this one hands down is let in, and not read.
    unsaid = {"resources.limits.cpu", "global"}
    values = _keys(yaml.safe_load((CHART / "values.yaml").read_text()))
    assert _names(schema) == values | unsaid
    assert not values & unsaid


def test_every_value_is_used() -> None:
    templates = "".join(path.read_text() for path in (CHART / "templates").rglob("*.*"))
    for name in yaml.safe_load((CHART / "values.yaml").read_text()):
        assert f".Values.{name}" in templates, name


def _names(schema: dict[str, Any]) -> set[str]:
    """Return the values that a schema lists by name."""
    return {
        f"{name}.{inner}" if inner else name
        for name, its in schema["properties"].items()
        for inner in (_names(its) if "properties" in its else {""})
    }


def _keys(values: dict[str, Any]) -> set[str]:
    return {
        f"{name}.{inner}" if inner else name
        for name, its in values.items()
        for inner in (_keys(its) if isinstance(its, dict) and its else {""})
    }
