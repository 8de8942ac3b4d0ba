"""What kustomize and helm make of `manifests/`."""

from __future__ import annotations

import functools
import re
import subprocess
from pathlib import Path
from typing import Any, Final

import yaml

from tests.gotools import find_tool

ROOT: Final = Path(__file__).parent.parent.parent
MANIFESTS: Final = ROOT / "manifests"
CHART: Final = MANIFESTS / "chart"
BUILDS: Final = ("base", "overlays/development", "overlays/production", "overlays/sidecar", "keycloak")
KUBERNETES: Final = "1.34.0"
RULES: Final = tuple(sorted(MANIFESTS.glob("**/rules.yaml")))

Object = dict[str, Any]


@functools.cache
def build(folder: str) -> str:
    """Return what `kustomize build` makes of a folder of `manifests/`."""
    done = subprocess.run(
        [find_tool("kustomize"), "build", MANIFESTS / folder], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr, "kustomize warns"
    return done.stdout


@functools.cache
def template(*options: str) -> str:
    """Return what the chart makes, as a release `authz` in the namespace `authz`."""
    done = render_chart("--skip-tests", *options)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, "helm warns"
    return done.stdout


def render_chart(*options: str) -> subprocess.CompletedProcess[str]:
    """Let helm render the chart, whatever comes of it. One that was built from its module knows no recent cluster."""
    return run_helm("template", "authz", str(CHART), "--namespace", "authz", "--kube-version", KUBERNETES, *options)


def run_helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run helm, whatever comes of it."""
    return subprocess.run([find_tool("helm"), *arguments], capture_output=True, text=True, timeout=60, check=False)


def read_objects(text: str) -> list[Object]:
    """Return the objects of a stream of documents."""
    return [document for document in yaml.safe_load_all(text) if document]


def without_files(rules: str) -> str:
    """Return rules whose secrets come from the environment variable SECRET, since only a pod has their files."""
    return re.sub(r"\$\{file:/etc/authz-secrets/[^}]+\}", "${env:SECRET}", rules)


def find_object(text: str, kind: str, name: str) -> Object:
    """Return the one object of that kind and name."""
    (found,) = (its for its in read_objects(text) if (its["kind"], its["metadata"]["name"]) == (kind, name))
    return found


def pod_templates(text: str) -> dict[str, Object]:
    """Return each pod that the objects make, by the kind and name of what makes it."""
    found = {}
    for its in read_objects(text):
        name = f"{its['kind']}/{its['metadata']['name']}"
        if its["kind"] == "Pod":
            found[name] = its
        elif "template" in its.get("spec", {}):
            found[name] = its["spec"]["template"]
    return found
