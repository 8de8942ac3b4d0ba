"""Write JSON Schemas for kubeconform, strict and without prose, from what API servers are told of their kinds.

``tools/schemas.py FOLDER FILE…`` takes CustomResourceDefinitions in YAML, or all definitions of one Kubernetes in JSON,
and writes into a folder of ``tests/manifests/schemas``; the README there says where those in the repository come from.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import yaml

TARGET: Final = Path(__file__).resolve().parent.parent / "tests" / "manifests" / "schemas"
PROSE: Final = frozenset(("description", "example", "examples", "default", "title", "externalDocs"))
BRANCHES: Final = ("anyOf", "oneOf", "allOf", "not")
"""What only adds conditions to an object whose properties stand beside it: its own properties are not all there are."""

REFERENCE: Final = re.compile(r'"#/\$defs/([^"]+)"')
KINDS: Final = frozenset(
    [
        *(("", "v1", kind) for kind in ("ConfigMap", "Namespace", "Pod", "Service", "ServiceAccount")),
        ("apps", "v1", "Deployment"),
        ("autoscaling", "v2", "HorizontalPodAutoscaler"),
        ("networking.k8s.io", "v1", "NetworkPolicy"),
        ("policy", "v1", "PodDisruptionBudget"),
    ]
)

_TEXTS: Final = {"type": "object", "additionalProperties": {"type": "string"}}
_METADATA: Final = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string"},
        "namespace": {"type": "string"},
        "labels": _TEXTS,
        "annotations": _TEXTS,
    },
    "required": ["name"],
}

Schema = dict[str, Any]


def main() -> None:
    """Convert the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("files", type=Path, nargs="+")
    arguments = parser.parse_args()
    for file in arguments.files:
        read = read_definitions if file.suffix == ".json" else read_crds
        for group, kind, version, schema in read(file):
            path = TARGET / arguments.folder / group / f"{kind.lower()}_{version}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(schema, separators=(",", ":"), sort_keys=True) + "\n")


def read_definitions(file: Path) -> Iterator[tuple[str, str, str, Schema]]:
    """Yield group, kind, version and strict schema of each of Kubernetes' own kinds that is in KINDS."""
    definitions = json.loads(file.read_text())["$defs"]
    for definition in definitions.values():
        for its in definition.get("x-kubernetes-group-version-kind", ()):
            if (its["group"], its["version"], its["kind"]) in KINDS:
                schema = tighten(definition)
                schema["$defs"] = {
                    name: tighten(definitions[name]) for name in sorted(find_needed(schema, definitions))
                }
                schema["required"] = ["apiVersion", "kind", "metadata"]
                # kubeconform takes the version for the group where there is none.
                yield its["group"] or its["version"], its["kind"], its["version"], schema


def find_needed(node: Any, definitions: Mapping[str, Schema]) -> set[str]:
    """Return the names of the definitions that a schema refers to, and those refer to."""
    needed: set[str] = set()
    waiting = [node]
    while waiting:
        for name in REFERENCE.findall(json.dumps(waiting.pop())):
            if name not in needed:
                needed.add(name)
                waiting.append(definitions[name])
    return needed


def read_crds(file: Path) -> Iterator[tuple[str, str, str, Schema]]:
    """Yield group, kind, version and strict schema of each kind in a file of CustomResourceDefinitions."""
    for document in yaml.load_all(file.read_text(), Loader=yaml.CSafeLoader):
        if document and document["kind"] == "CustomResourceDefinition":
            spec = document["spec"]
            version = choose_version(spec["versions"])
            schema = tighten(version["schema"]["openAPIV3Schema"])
            properties = schema["properties"]
            properties.pop("status", None)
            kind, group, name = spec["names"]["kind"], spec["group"], version["name"]
            properties |= {"apiVersion": {"const": f"{group}/{name}"}, "kind": {"const": kind}, "metadata": _METADATA}
            schema["required"] = sorted({*schema.get("required", ()), "apiVersion", "kind", "metadata"} - {"status"})
            yield group, kind, name, schema


def choose_version(versions: list[Schema]) -> Schema:
    """Return the most stable version that is served: ``v1`` before ``v1beta1`` before ``v1alpha3``."""
    served = [its for its in versions if its["served"]]
    return min(served, key=lambda its: ("alpha" in its["name"], "beta" in its["name"], its["name"]))


def tighten(node: Any, *, branch: bool = False) -> Any:
    """Return a schema without prose, whose objects have no other properties than those that are named."""
    if isinstance(node, list):
        return [tighten(its, branch=branch) for its in node]
    if not isinstance(node, Mapping):
        return node
    if node.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    found: Schema = {}
    for key, value in node.items():
        if key == "properties":
            found[key] = {name: tighten(its, branch=branch) for name, its in value.items()}
        elif key not in PROSE and not key.startswith("x-"):
            found[key] = tighten(value, branch=branch or key in BRANCHES)
    if found.pop("nullable", False) and "type" in found:
        found["type"] = [found["type"], "null"]
    is_open = node.get("x-kubernetes-preserve-unknown-fields") or node.get("x-kubernetes-embedded-resource")
    if "properties" in found and not is_open and not branch:
        found.setdefault("additionalProperties", False)
    return found


if __name__ == "__main__":
    main()
