"""What `manifests/` makes is what an API server takes, and what a careful operator would have written."""

from __future__ import annotations

import copy
import json
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from authz import __version__
from tests.gotools import find_tool
from tests.manifests.conform import SCHEMAS, check_objects
from tests.manifests.render import (
    BUILDS,
    CHART,
    MANIFESTS,
    ROOT,
    Object,
    build,
    find_object,
    read_objects,
    render_chart,
    run_helm,
    template,
)

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1_500)]  # the first time, programs are built

PRODUCTION: Final = str(CHART / "ci/production-values.yaml")
DEVELOPMENT: Final = str(CHART / "ci/development-values.yaml")
SAME: Final[dict[str, tuple[str, ...]]] = {
    "base": (),
    "overlays/development": ("--values", DEVELOPMENT),
    "overlays/production": ("--values", PRODUCTION),
}
"""What kustomize and the chart make alike."""

EVERYTHING: Final[dict[str, Callable[[], str]]] = {
    **{name: partial(build, name) for name in BUILDS},
    **{f"chart as {name}": partial(template, *options) for name, options in SAME.items()},
}

EVERYWHERE: Final = {
    "container-image-pull-policy": "a tag of ours never moves: a start need not ask the registry",
}
ALLOWED: Final[dict[str, dict[str, str]]] = {
    "overlays/development": {"deployment-replicas": "one pod is what a trial needs"},
    "keycloak": {
        "deployment-replicas": "each has a database of its own, in its memory",
        "container-security-context-readonlyrootfilesystem": "in development mode it builds itself at its start",
        "container-security-context-user-group-id": "the image's own user, whose files it changes at its start",
    },
}
"""Checks of kube-score that are left out, with the reason."""


@pytest.mark.parametrize("name", EVERYTHING)
def test_every_object_is_what_the_api_server_takes(name: str) -> None:
    assert check_objects(EVERYTHING[name]()) == []


def test_the_helm_test_pod_is_what_the_api_server_takes() -> None:
    done = render_chart("--show-only", "templates/tests/validate.yaml")
    assert check_objects(done.stdout) == []
    (pod,) = read_objects(done.stdout)
    assert pod["spec"]["containers"][0]["args"] == ["validate", "--online", "/etc/authz/rules.yaml"]
    selector = find_object(template(), "Service", "authz")["spec"]["selector"]
    assert not selector.items() <= pod["metadata"]["labels"].items(), "checks would be sent to it"


@pytest.mark.parametrize(
    ("kind", "path", "value", "complaint"),
    [
        ("Deployment", "spec.template.spec.containers.0.readinesProbe", {}, "readinesProbe"),
        ("Deployment", "spec.replicas", "two", "got string, want"),
        ("Service", "spec.ports.0.appProtocoll", "grpc", "appProtocoll"),
        ("NetworkPolicy", "spec.ingress.0.form", [], "form"),
        ("PodDisruptionBudget", "spec.minAvailabel", 1, "minAvailabel"),
        ("HorizontalPodAutoscaler", "spec.metrics.0.resource.target.averageUtilisation", 70, "averageUtilisation"),
        ("ServiceMonitor", "spec.endpoints.0.pord", "http-metrics", "pord"),
        ("PrometheusRule", "spec.groups.0.rules.0.expression", "up", "expression"),
        ("ConfigMap", "dat", {}, "dat"),
        ("ServiceAccount", "automount", False, "automount"),
    ],
)
def test_a_misspelt_key_is_found(kind: str, path: str, value: Any, complaint: str) -> None:
    """The twin, the same object as it stands, is judged good by the test before."""
    names = {its["kind"]: its["metadata"]["name"] for its in read_objects(build("overlays/production"))}
    spoilt = copy.deepcopy(find_object(build("overlays/production"), kind, names[kind]))
    *way, last = path.split(".")
    place: Any = spoilt
    for step in way:
        place = place[int(step)] if isinstance(place, list) else place[step]
    place[last] = value
    problems = check_objects(yaml.safe_dump(spoilt))
    assert problems
    assert all(complaint in its for its in problems)


def test_a_kind_without_a_schema_is_found() -> None:
    unknown = {"apiVersion": "example.com/v1", "kind": "Unknown", "metadata": {"name": "x"}}
    (problem,) = check_objects(yaml.safe_dump(unknown))
    assert "could not find schema for Unknown" in problem


def test_every_schema_is_of_a_kind_that_is_here() -> None:
    """Of what the manifests make, and of the files of `istio/`."""
    texts = [render_chart().stdout, *map(build, BUILDS)]
    texts += [its.read_text() for its in (ROOT / "istio").rglob("*.yaml")]
    objects = [its for text in texts for its in read_objects(text) if {"apiVersion", "kind"} <= its.keys()]
    there = {(its["kind"].lower(), *its["apiVersion"].split("/")) for its in objects}
    unread = [
        its
        for its in SCHEMAS.rglob("*.json")
        for kind, _, version in [its.stem.partition("_")]
        if not {(kind, version), (kind, its.parent.name, version)} & there
    ]
    assert unread == []


@pytest.mark.parametrize("name", SAME)
def test_kustomize_and_the_chart_make_the_same_objects(name: str) -> None:
    """But for the Namespace, which `helm install --create-namespace` makes, and what Helm notes for itself."""
    built, made = (
        {(its["kind"], its["metadata"]["name"]): _plain(its) for its in read_objects(text)}
        for text in (build(name), template(*SAME[name]))
    )
    del built["Namespace", "authz"]
    assert built.keys() == made.keys()
    for key, its in built.items():
        assert its == made[key], key


def _plain(its: Object) -> Object:
    """Take away what Helm notes for itself, and the stamp by which it makes new pods."""
    found = copy.deepcopy(its)
    for label in ("helm.sh/chart", "app.kubernetes.io/managed-by"):
        found["metadata"]["labels"].pop(label, None)
    if its["kind"] == "Deployment":
        annotations = found["spec"]["template"]["metadata"].pop("annotations", {})
        assert annotations.keys() <= {"checksum/server"}
    return found


@pytest.mark.parametrize("values", [(), ("--values", DEVELOPMENT), ("--values", PRODUCTION)])
def test_helm_lint_finds_nothing(values: tuple[str, ...]) -> None:
    done = run_helm("lint", "--strict", str(CHART), *values)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[WARNING]" not in done.stdout
    assert "[ERROR]" not in done.stdout


@pytest.mark.parametrize("name", EVERYTHING)
def test_kube_score_finds_nothing(name: str) -> None:
    ignored = EVERYWHERE | ALLOWED.get(name.removeprefix("chart as "), {})
    assert score(EVERYTHING[name](), *ignored) == []


@pytest.mark.parametrize(("name", "ignored"), [(name, check) for name, found in ALLOWED.items() for check in found])
def test_no_check_is_left_out_without_need(name: str, ignored: str) -> None:
    others = (EVERYWHERE | ALLOWED[name]).keys() - {ignored}
    assert any(its.endswith(ignored) for its in score(build(name), *others))


def score(text: str, *ignored: str) -> list[str]:
    """Return what kube-score finds less than good. Of CPU there is no limit: it would hold checks up."""
    command = [str(find_tool("kube-score")), "score", "-", "--output-format", "json", "--kubernetes-version", "v1.30"]
    command += ["--ignore-container-cpu-limit", "--enable-optional-test", "container-seccomp-profile"]
    for its in ignored:
        command += ["--ignore-test", its]
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=False)
    best = 10
    return [
        f"{its['object_name']}: {check['check']['id']}"
        for its in json.loads(done.stdout)
        for check in its["checks"]
        if not check["skipped"] and check["grade"] < best
    ]


@pytest.mark.parametrize("name", BUILDS)
def test_our_image_is_of_this_version_everywhere(name: str) -> None:
    for line in build(name).splitlines():
        if "image: authz:" in line:
            assert line.endswith(f"authz:{__version__}")
        if "app.kubernetes.io/version:" in line:
            assert line.endswith(f" {__version__}")


def test_the_chart_and_the_image_are_of_this_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (__version__, __version__)
    assert f"ARG VERSION={__version__}\n" in (ROOT / "Dockerfile").read_text()
    image = find_object(template(), "Deployment", "authz")["spec"]["template"]["spec"]["containers"][0]["image"]
    assert image == f"authz:{__version__}"


def test_only_those_who_are_named_are_let_in() -> None:
    """An empty list of namespaces lets nobody in: a rule without `from` would let everybody."""
    nobody = template("--set", "networkPolicy.callers=null,networkPolicy.scrapers=null")
    assert not find_object(nobody, "NetworkPolicy", "authz")["spec"]["ingress"]
    one = template("--set", "networkPolicy.callers={edge}")
    checks, figures = find_object(one, "NetworkPolicy", "authz")["spec"]["ingress"]
    assert checks["from"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "edge"}}}]
    assert [its["port"] for its in checks["ports"]] == [9001]
    assert [its["port"] for its in figures["ports"]] == [9002]
    ambient = template("--set", "networkPolicy.ambient=true")
    checks, _ = find_object(ambient, "NetworkPolicy", "authz")["spec"]["ingress"]
    assert [its["port"] for its in checks["ports"]] == [9001, 15008]


def test_the_pods_are_new_if_and_only_if_the_server_part_changes(tmp_path: Path) -> None:
    rules = (MANIFESTS / "base/rules.yaml").read_text()

    def stamp(text: str) -> str:
        file = tmp_path / "rules.yaml"
        file.write_text(text)
        done = render_chart("--set-file", f"rules={file}")
        pod = find_object(done.stdout, "Deployment", "authz")["spec"]["template"]
        found: str = pod["metadata"]["annotations"]["checksum/server"]
        assert find_object(done.stdout, "ConfigMap", "authz-rules")["data"]["rules.yaml"] == text
        return found

    assert stamp(rules.replace("orders-reader", "orders-writer")) == stamp(rules)
    assert stamp(rules.replace("workers: 2", "workers: 3")) != stamp(rules)
