"""Every pod keeps to the strictest Pod Security level, and the authorizer's lose nothing when they go."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any, Final

import pytest

from authz.config import Configuration, load
from authz.servers.check import SERVICE
from tests.manifests.pod_security import find_violations
from tests.manifests.render import (
    BUILDS,
    MANIFESTS,
    Object,
    build,
    find_object,
    pod_templates,
    read_objects,
    render_chart,
    template,
    without_files,
)

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1_500)]  # the first time, programs are built

OURS: Final = ("base", "overlays/development", "overlays/production", "overlays/sidecar")
DRAIN_MARGIN_S: Final = 5
"""What a drain takes beyond `drain_s`, as docs/deployment.md says."""


def containers(pod: Object) -> list[Object]:
    return [*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"]]


def authorizer(pod: Object) -> Object:
    (found,) = (its for its in containers(pod) if its["name"] == "authz")
    return found


@pytest.mark.parametrize("name", BUILDS)
def test_every_pod_is_admitted_at_the_level_restricted(name: str) -> None:
    found = pod_templates(build(name))
    assert found
    for pod in found.values():
        assert find_violations(pod["spec"]) == []


def test_the_pods_of_the_chart_are_admitted_at_the_level_restricted() -> None:
    done = render_chart()
    found = pod_templates(done.stdout)
    assert sorted(found) == ["Deployment/authz", "Pod/authz-test"]
    for pod in found.values():
        assert find_violations(pod["spec"]) == []


@pytest.mark.parametrize("name", BUILDS)
def test_every_namespace_holds_its_pods_to_that_level(name: str) -> None:
    (namespace,) = (its for its in read_objects(build(name)) if its["kind"] == "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        ("hostNetwork", True, "hostNetwork is set"),
        ("hostPID", True, "hostPID is set"),
        ("volumes.0", {"name": "x", "hostPath": {"path": "/"}}, "volume x is a hostPath"),
        ("securityContext.sysctls", [{"name": "kernel.x", "value": "1"}], "sysctl kernel.x"),
        ("securityContext.runAsNonRoot", False, "authz: may run as root"),
        ("securityContext.runAsUser", 0, "authz: runs as root"),
        ("securityContext.seccompProfile", {"type": "Unconfined"}, "authz: may make any system call"),
        ("containers.0.securityContext.privileged", True, "authz: is privileged"),
        ("containers.0.securityContext.allowPrivilegeEscalation", True, "authz: may escalate its privileges"),
        ("containers.0.securityContext.capabilities", {}, "authz: keeps capabilities"),
        ("containers.0.securityContext.capabilities.add", ["NET_ADMIN"], "authz: adds capabilities"),
        ("containers.0.securityContext.procMount", "Unmasked", "authz: sees all of /proc"),
        ("containers.0.securityContext.seLinuxOptions", {"type": "spc_t"}, "authz: leaves its confinement"),
        ("containers.0.ports.0.hostPort", 9001, "authz: has a host port"),
    ],
)
def test_the_level_refuses(path: str, value: Any, complaint: str) -> None:
    spec = copy.deepcopy(find_object(build("base"), "Deployment", "authz")["spec"]["template"]["spec"])
    assert find_violations(spec) == []
    *way, last = path.split(".")
    place: Any = spec
    for step in way:
        place = place[int(step)] if isinstance(place, list) else place[step]
    place[int(last) if isinstance(place, list) else last] = value
    assert find_violations(spec) == [complaint]


@pytest.mark.parametrize("name", BUILDS)
def test_no_pod_has_a_token_for_the_cluster(name: str) -> None:
    for pod in pod_templates(build(name)).values():
        assert pod["spec"]["automountServiceAccountToken"] is False
        assert pod["spec"]["enableServiceLinks"] is False
    for its in read_objects(build(name)):
        if its["kind"] == "ServiceAccount":
            assert its["automountServiceAccountToken"] is False


@pytest.mark.parametrize("name", OURS)
def test_the_authorizer_writes_into_its_own_folder_only(name: str) -> None:
    for pod in pod_templates(build(name)).values():
        for container in containers(pod):
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert container["resources"]["limits"]["memory"]
            assert container["resources"]["requests"]["cpu"]
            assert "cpu" not in container["resources"]["limits"]
        ours = authorizer(pod)
        assert {"name": "TMPDIR", "value": "/tmp"} in ours["env"]
        mounts = {its["mountPath"]: its for its in ours["volumeMounts"]}
        volumes = {its["name"]: its for its in pod["spec"]["volumes"]}
        assert "emptyDir" in volumes[mounts["/tmp"]["name"]]
        assert volumes[mounts["/etc/authz"]["name"]]["configMap"]["name"].endswith("-rules")
        # A change of the ConfigMap never reaches a file that is mounted by itself.
        assert not any("subPath" in its for its in mounts.values())


@pytest.mark.parametrize("name", OURS)
def test_a_pod_is_killed_only_after_it_has_drained(name: str) -> None:
    (pod,) = pod_templates(build(name)).values()
    sleeps = [its["lifecycle"]["preStop"]["sleep"]["seconds"] for its in containers(pod) if "lifecycle" in its]
    assert min(sleeps) >= 5
    grace_s = pod["spec"]["terminationGracePeriodSeconds"]
    assert grace_s >= max(sleeps) + rules_of(name).server.drain_s + DRAIN_MARGIN_S


def test_the_sidecars_outlive_the_application() -> None:
    """They are started before it, and ended after it in the reverse order: nobody asks one that has gone."""
    (pod,) = pod_templates(build("overlays/sidecar")).values()
    assert [its["name"] for its in pod["spec"]["initContainers"]] == ["authz", "envoy"]
    assert [its["restartPolicy"] for its in pod["spec"]["initContainers"]] == ["Always", "Always"]
    assert all("startupProbe" in its for its in pod["spec"]["initContainers"])


@pytest.mark.parametrize("name", OURS[:-1])
def test_kubelet_asks_what_the_service_answers(name: str) -> None:
    """By gRPC health, of the whole server and of the service that proxies call."""
    (pod,) = pod_templates(build(name)).values()
    ours = authorizer(pod)
    (listener,) = rules_of(name).server.grpc
    port = int(listener.address.rpartition(":")[2])
    assert listener.tls is None, "kubelet asks without TLS"
    assert ours["startupProbe"]["grpc"] == ours["livenessProbe"]["grpc"] == {"port": port}
    assert ours["readinessProbe"]["grpc"] == {"port": port, "service": SERVICE}
    http = rules_of(name).server.http
    assert http is not None
    ports = {its["name"]: its["containerPort"] for its in ours["ports"]}
    assert ports == {"grpc": port, "http": int(http.rpartition(":")[2])}


def test_the_service_says_that_it_speaks_grpc() -> None:
    for text in (build("base"), template()):
        service = find_object(text, "Service", "authz")["spec"]
        ports = {its["name"]: (its["port"], its["targetPort"], its["appProtocol"]) for its in service["ports"]}
        assert ports == {"grpc-authz": (9001, "grpc", "grpc"), "http-metrics": (9002, "http", "http")}


def rules_of(name: str) -> Configuration:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rules.yaml"
        file.write_text(without_files((MANIFESTS / name / "rules.yaml").read_text()))
        return load(file, environ={"SECRET": "x"})
