"""The files of `istio/`, and small objects beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import yaml

from tests.istio.cluster import Object

ROOT: Final = Path(__file__).parents[2]


def load(name: str, *comments: str) -> list[Object]:
    """Return the objects of a file of `istio/`, with these commented lines counted in."""
    text = (ROOT / "istio" / name).read_text()
    for comment in comments:
        assert text.count(comment) == 1, comment
        text = text.replace(comment, comment.removeprefix("# "))
    return [its for its in yaml.safe_load_all(text) if its]


def mesh_config(mesh: Object) -> Object:
    metadata = {"name": "istio", "namespace": "istio-system"}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"mesh": yaml.safe_dump(mesh)}}


def istio_object(version: str, kind: str, name: str, where: str, spec: Object) -> Object:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, "namespace": where}, "spec": spec}
