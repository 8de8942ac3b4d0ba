"""The table of the Helm chart's values, from the comments in its ``values.yaml`` that begin with ``--``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml

CHART: Final = Path(__file__).resolve().parent.parent / "manifests" / "chart"
MARK: Final = "# -- "
_HEAD: Final = """\
# Chart `authz`

An external authorization service for Envoy and Istio.
[Kubernetes](../../docs/kubernetes.md) tells what the chart sets up and why.

```sh
helm install authz manifests/chart --namespace authz --create-namespace --set-file rules=rules.yaml
helm test authz --namespace authz --logs    # do the rules load, and do the identity providers answer?
```

A value that is unknown, or of another kind, is refused; so is one that does not fit what the rules' `server` says.

| value | if not said | is |
|---|---|---|
"""


def render_chart_readme() -> str:
    """Write the chart's README."""
    text = (CHART / "values.yaml").read_text()
    rows = [f"| `{name}` | {_show(default)} | {told} |" for name, default, told in read_values(text)]
    return _HEAD + "\n".join(rows) + "\n"


def read_values(text: str) -> Iterator[tuple[str, Any, str]]:
    """Yield each value's dotted name, its default and its comment.

    Raises:
        ValueError: for a value without a comment.

    """
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode)  # noqa: S101 - for types: it is our own file
    yield from _walk(root, text.splitlines(), yaml.safe_load(text), "")


def _walk(
    node: yaml.MappingNode, lines: list[str], values: dict[str, Any], prefix: str
) -> Iterator[tuple[str, Any, str]]:
    for key, value in node.value:
        name, told = f"{prefix}{key.value}", _comment(lines, key.start_mark.line)
        if told:
            yield name, values[key.value], told
        elif isinstance(value, yaml.MappingNode) and value.value:
            yield from _walk(value, lines, values[key.value], f"{name}.")
        else:
            raise ValueError(f"`{name}` has no comment: write `{MARK}…` above it")


def _comment(lines: list[str], at: int) -> str:
    above = lines[at - 1].strip() if at else ""
    return above.removeprefix(MARK) if above.startswith(MARK) else ""


def _show(default: Any) -> str:
    if isinstance(default, str) and "\n" in default:
        return "an example"
    return f"`{json.dumps(default, ensure_ascii=False)}`"
