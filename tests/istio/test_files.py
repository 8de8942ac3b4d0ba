"""Every file of `istio/` is taken by the program that it is for, and the page names each."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from authz.cli import main
from authz.config import load as load_rules
from authz.demo.proxy import find_envoy
from tests.gotools import find_tool
from tests.istio.files import ROOT, load
from tests.manifests.conform import check_objects

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1_500)]

FOLDER = ROOT / "istio"
OBJECTS = sorted(
    its.relative_to(FOLDER).as_posix()
    for its in FOLDER.rglob("*.yaml")
    if its.name not in {"values.yaml", "rules.yaml", "envoy.yaml", "envoy-gateway.yaml"}
)
FORMS = ("mesh-config/values.yaml", "mesh-config/istio-operator.yaml", "mesh-config/configmap.yaml")
# What the files speak of and a cluster has; for the analysis only.
AROUND = """
{namespaces}
---
apiVersion: v1
kind: Service
metadata: {{name: authz, namespace: authz}}
spec: {{ports: [{{name: grpc-authz, port: 9001, appProtocol: grpc}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: orders, namespace: shop}}
spec: {{selector: {{app: orders}}, ports: [{{name: http, port: 80}}]}}
---
apiVersion: v1
kind: Pod
metadata: {{name: gateway, namespace: istio-ingress, labels: {{istio: ingressgateway}}}}
spec: {{containers: [{{name: istio-proxy, image: "istio/proxyv2:1.31.0"}}]}}
---
apiVersion: v1
kind: Pod
metadata: {{name: orders, namespace: shop, labels: {{app: orders}}}}
spec: {{containers: [{{name: orders, image: none}}, {{name: istio-proxy, image: "istio/proxyv2:1.31.0"}}]}}
---
apiVersion: v1
kind: Pod
metadata: {{name: authz, namespace: authz, labels: {{app.kubernetes.io/name: authz}}}}
spec: {{containers: [{{name: authz, image: none}}, {{name: istio-proxy, image: "istio/proxyv2:1.31.0"}}]}}
"""


def istioctl(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([find_tool("istioctl"), *arguments], capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("name", OBJECTS)
def test_istio_takes_the_file(name: str) -> None:
    done = istioctl("validate", "--filename", str(FOLDER / name))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Warning" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    "name", [its for its in OBJECTS if "operator" not in its] + ["without-istio/envoy-gateway.yaml"]
)
def test_an_api_server_takes_the_file(name: str) -> None:
    assert check_objects((FOLDER / name).read_text()) == []


def test_an_api_server_refuses_a_misspelt_key() -> None:
    for name, right, wrong in (
        ("policies/gateway.yaml", "provider:", "providers:"),
        ("without-istio/envoy-gateway.yaml", "failOpen:", "failopen:"),
    ):
        text = (FOLDER / name).read_text()
        assert text.count(right) == 1
        assert len(check_objects(text.replace(right, wrong))) == 1


def test_envoy_takes_the_plain_configuration_which_is_what_the_command_prints(tmp_path: Path) -> None:
    file = FOLDER / "without-istio" / "envoy.yaml"
    printed = CliRunner().invoke(main, ["envoy-config", str(ROOT / "examples" / "quickstart.yaml")])
    assert file.read_text() == printed.output
    done = subprocess.run(
        [find_envoy(), "--mode", "validate", "--config-path", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_istio_refuses_what_is_wrong(tmp_path: Path) -> None:
    policy = load("policies/gateway.yaml")[0]
    for change, words in (
        ({"rules": []}, "rules"),
        ({"provider": None}, "provider"),
        ({"provider": {"name": "authz"}, "rules": [{"from": [{"source": {"principals": ["x"]}}]}]}, "principals"),
    ):
        file = tmp_path / "policy.yaml"
        file.write_text(yaml.safe_dump({**policy, "spec": {**policy["spec"], **change}}))
        done = istioctl("validate", "--filename", str(file))
        assert done.returncode != 0
        assert words in (done.stdout + done.stderr).lower()


@pytest.mark.parametrize("name", OBJECTS)
def test_the_analysis_finds_nothing(name: str, tmp_path: Path) -> None:
    around = tmp_path / "around.yaml"
    names = ("istio-system", "istio-ingress", "authz", "shop", "monitoring")
    namespaces = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": its, "labels": {"istio-injection": "enabled"}}}
        for its in names
    ]
    around.write_text(AROUND.format(namespaces=yaml.safe_dump_all(namespaces)))
    done = istioctl(
        *("analyze", "--use-kube=false", "--all-namespaces", "--failure-threshold", "Warning", "--output", "yaml"),
        *(str(around), str(FOLDER / name)),
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_analysis_finds_what_is_wrong(tmp_path: Path) -> None:
    (service,) = [its for its in load("echoserver/gateway.yaml") if its["kind"] == "VirtualService"]
    service["spec"]["gateways"] = ["istio-ingress/no-such-gateway"]
    file = tmp_path / "routes.yaml"
    file.write_text(yaml.safe_dump(service))
    done = istioctl("analyze", "--use-kube=false", "--all-namespaces", "--failure-threshold", "Warning", str(file))
    assert done.returncode != 0
    assert "no-such-gateway" in done.stdout


def test_the_three_forms_of_the_mesh_s_configuration_say_the_same() -> None:
    values, operator, configmap = (load(its)[0] for its in FORMS)
    found = [values["meshConfig"], operator["spec"]["meshConfig"], yaml.safe_load(configmap["data"]["mesh"])]
    assert found[0] == found[1] == found[2]
    (provider,) = found[0]["extensionProviders"]
    wanted = {"timeout": "0.5s", "failOpen": False, "statusOnError": "503", "port": 9001}
    assert provider["envoyExtAuthzGrpc"] == {"service": "authz.authz.svc.cluster.local", **wanted}


@pytest.mark.parametrize("name", ["echoserver", "observability"])
def test_the_rules_of_an_example_load(name: str) -> None:
    assert load_rules(FOLDER / name / "rules.yaml", environ={}).server.door == "fast"


def test_the_page_names_every_file_or_its_folder() -> None:
    text = (FOLDER / "README.md").read_text()
    for file in FOLDER.rglob("*.yaml"):
        folder = file.relative_to(FOLDER).parts[0]
        assert f"`{folder}/`" in text or file.name in text, file
    for word in text.replace("`", " ").split():
        if word.endswith(".yaml") and "/" in word and word not in {"mesh.yaml", "rules.yaml"}:
            assert (FOLDER / word).is_file(), word
