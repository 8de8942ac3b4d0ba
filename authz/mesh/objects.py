"""Read a mesh's objects: manifests, what ``kubectl get -o yaml`` prints, Helm values, a bare meshConfig.

What istiod or Kubernetes would refuse as malformed reads as absent here, unless a trap is named for it. A meshConfig
has its keys in either of the spellings that istiod takes, ``failOpen`` or ``fail_open``: it is kept in the first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from authz.config.document import Allowance, Document, Loc, parse_documents
from authz.model import ConfigError, ConfigProblem

MAX_BYTES: Final = 32 * 1024 * 1024
"""Of one file: all the objects of a large mesh."""

MESH_CONFIG: Final = "MeshConfig"
VALUES: Final = "Values"
STDIN: Final = Path("-")

KINDS: Final[Mapping[str, tuple[str, ...]]] = {
    "AuthorizationPolicy": ("authorizationpolicies",),
    "RequestAuthentication": ("requestauthentications",),
    "PeerAuthentication": ("peerauthentications",),
    "Sidecar": ("sidecars",),
    "EnvoyFilter": ("envoyfilters",),
    "DestinationRule": ("destinationrules",),
    "ServiceEntry": ("serviceentries",),
    "VirtualService": ("virtualservices.networking.istio.io",),
    "Gateway": ("gateways.networking.istio.io", "gateways.gateway.networking.k8s.io"),
    "HTTPRoute": ("httproutes",),
    "GRPCRoute": ("grpcroutes",),
    "Service": ("services",),
    "Deployment": ("deployments",),
    "StatefulSet": ("statefulsets",),
    "DaemonSet": ("daemonsets",),
    "Pod": ("pods",),
    "Namespace": ("namespaces",),
    "NetworkPolicy": ("networkpolicies",),
    "ConfigMap": ("configmaps",),
}
"""What is looked at, and how ``kubectl get`` names it: the command of the pages has all of these."""

_SUFFIXES: Final = frozenset({".yaml", ".yml", ".json"})
_BARE_KEYS: Final = frozenset({"extensionProviders", "pathNormalization", "defaultConfig", "rootNamespace"})
_PROTO_NAME: Final = re.compile(r"[a-z0-9]+(?:_[a-z0-9]+)+")
_ROOT: Final = "istio-system"
_BLOCK: Final = re.compile(r"\|[-+0-9]*\s*(?:#.*)?$")


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshObject:
    """One object, and where each of its values stands.

    A meshConfig is an object of its own, of kind ``MeshConfig``, wherever it stands; Helm values are ``Values``.
    """

    kind: str
    group: str = ""
    namespace: str = ""
    name: str = ""
    body: Mapping[str, Any]
    file: str
    document: Document
    loc: Loc = ()
    first_line: int = 1

    def line(self, *path: str | int) -> int:
        """Return the line of a value, or of the nearest one around it that is there."""
        return self.first_line - 1 + self.document.line((*self.loc, *path))

    @property
    def spec(self) -> Mapping[str, Any]:
        """What the object says."""
        return as_mapping(self.body.get("spec"))

    @property
    def labels(self) -> dict[str, str]:
        """Its own labels."""
        return as_labels(as_mapping(self.body.get("metadata")).get("labels"))

    @property
    def annotations(self) -> Mapping[str, Any]:
        """Its own annotations."""
        return as_mapping(as_mapping(self.body.get("metadata")).get("annotations"))

    def __str__(self) -> str:
        """Render as people name it."""
        return " ".join(part for part in (self.kind, "/".join(filter(None, (self.namespace, self.name)))) if part)


def as_mapping(value: object) -> Mapping[str, Any]:
    """Return a mapping, an empty one for what is none."""
    return value if isinstance(value, dict) else {}


def as_labels(value: object) -> dict[str, str]:
    """Return labels, or what selects by them, with texts for what YAML took for something else."""
    return {str(key): str(item) for key, item in as_mapping(value).items()}


def as_items(value: object) -> list[Any]:
    """Return a list, an empty one for what is none."""
    return value if isinstance(value, list) else []


def as_texts(value: object) -> tuple[str, ...]:
    """Return the texts and numbers of a list."""
    return tuple(str(item) for item in as_items(value) if isinstance(item, str | int) and not isinstance(item, bool))


def as_text(value: object) -> str:
    """Return a text, an empty one for what is none."""
    return value if isinstance(value, str) else ""


def read_objects(paths: Iterable[Path], stdin: BinaryIO) -> tuple[list[MeshObject], list[ConfigProblem]]:
    """Read all files, and those of folders; ``-`` is standard input. Also return what could not be read, and why."""
    objects: list[MeshObject] = []
    problems: list[ConfigProblem] = []
    allowance = Allowance()
    for path in paths:
        known = len(objects) + len(problems)
        for file in _list_files(path) if path.is_dir() else [path]:
            try:
                for document, lines in _read_file(file, stdin, allowance):
                    problems += document.problems
                    found = [*_expand(document, (), str(file), lines, allowance)]
                    objects += found
                    problems += (its for mesh in found if mesh.kind == MESH_CONFIG for its in mesh.document.problems)
            except ConfigError as error:
                problems += error.problems
        if known == len(objects) + len(problems):
            text = "holds no object: give Kubernetes manifests, Helm values or a meshConfig"
            problems.append(ConfigProblem(file=str(path), message=text))
    return objects, problems


def _list_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.suffix in _SUFFIXES and file.is_file())


def _read_file(file: Path, stdin: BinaryIO, allowance: Allowance) -> list[tuple[Document, list[str]]]:
    try:
        if file == STDIN:
            raw = stdin.read(MAX_BYTES + 1)
        else:
            with file.open("rb") as opened:
                raw = opened.read(MAX_BYTES + 1)
        text = raw.decode("utf-8").removeprefix("\ufeff")
    except OSError as error:
        raise _problem(file, f"cannot be read: {(error.strerror or 'unreadable').lower()}") from None
    except UnicodeDecodeError as error:
        raise _problem(file, "not utf-8: save it as utf-8", raw.count(b"\n", 0, error.start) + 1) from None
    if len(raw) > MAX_BYTES:
        raise _problem(file, f"larger than {MAX_BYTES} bytes: give several files")
    lines = text.split("\n")
    return [(document, lines) for document in parse_documents(text, file=str(file), allowance=allowance)]


def _problem(file: Path, message: str, line: int = 0) -> ConfigError:
    return ConfigError(ConfigProblem(file=str(file), line=line, message=message))


def _expand(document: Document, loc: Loc, file: str, lines: list[str], allowance: Allowance) -> Iterator[MeshObject]:
    """Yield the objects of a document, or of one item of a list."""
    value: Any = document.value
    for step in loc:
        value = value[step]
    body = as_mapping(value)
    kind = as_text(body.get("kind"))
    if kind.endswith("List"):
        for number in range(len(as_items(body.get("items")))):
            yield from _expand(document, (*loc, "items", number), file, lines, allowance)
        return
    if not kind:
        yield from _expand_values(document, loc, file, body)
        return
    metadata = as_mapping(body.get("metadata"))
    its = MeshObject(
        kind=kind,
        group=as_text(body.get("apiVersion")).partition("/")[0],
        namespace="" if kind == "Namespace" else as_text(metadata.get("namespace")) or "default",
        name=as_text(metadata.get("name")),
        body=body,
        file=file,
        document=document,
        loc=loc,
    )
    yield its
    yield from _expand_mesh(its, lines, allowance)


def _expand_values(document: Document, loc: Loc, file: str, body: Mapping[str, Any]) -> Iterator[MeshObject]:
    if isinstance(body.get("meshConfig"), dict):
        yield MeshObject(kind=VALUES, body=body, file=file, document=document, loc=loc)
        yield _make_mesh(document, (*loc, "meshConfig"), body["meshConfig"], file)
    elif _BARE_KEYS.intersection(map(_respell, filter(None, map(as_text, body)))):
        yield _make_mesh(document, loc, body, file)


def _make_mesh(
    document: Document, loc: Loc, body: Mapping[str, Any], file: str, *, first_line: int = 1, name: str = ""
) -> MeshObject:
    """Return a meshConfig with every key in one spelling, and the lines of its values by these."""
    lines: dict[Loc, int] = {loc: document.line(loc)}
    its = _respell_keys(body, document, loc, loc, lines)
    problems = [
        ConfigProblem(
            file=file,
            line=first_line - 1 + document.line((*loc, *at)),
            message=f"key `{at[-1]}` is written twice, once as `{_respell(str(at[-1]))}`: remove one",
        )
        for at in _find_twice(body, ())
    ]
    known = Document(body, lines, tuple(problems))
    return MeshObject(kind=MESH_CONFIG, name=name, body=its, file=file, document=known, loc=loc, first_line=first_line)


def _respell(key: str) -> str:
    """Return a key as JSON has it, from its name in the protocol's own definition."""
    if not _PROTO_NAME.fullmatch(key):
        return key
    first, *others = key.split("_")
    return first + "".join(map(str.capitalize, others))


def _find_twice(value: Any, loc: Loc) -> Iterator[Loc]:
    """Yield where a key stands in its second spelling."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, item in items:
        if isinstance(step, str) and _respell(step) != step and _respell(step) in value:
            yield (*loc, step)
        yield from _find_twice(item, (*loc, step))


def _respell_keys(value: Any, document: Document, at: Loc, loc: Loc, lines: dict[Loc, int]) -> Any:
    """Return a value of the document, which stands at ``at`` there, and at ``loc`` once keys are respelt."""
    if isinstance(value, dict):
        steps: list[tuple[str | int, str | int, Any]] = [(key, _respell(key), item) for key, item in value.items()]
    elif isinstance(value, list):
        steps = [(number, number, item) for number, item in enumerate(value)]
    else:
        return value
    found = {}
    for step, new, item in steps:
        lines[*loc, new] = document.line((*at, step))
        found[new] = _respell_keys(item, document, (*at, step), (*loc, new), lines)
    return found if isinstance(value, dict) else [*found.values()]


def _expand_mesh(its: MeshObject, lines: list[str], allowance: Allowance) -> Iterator[MeshObject]:
    """Yield the meshConfig that an object holds."""
    path: Loc = ("data", "mesh")
    if (
        its.kind == "ConfigMap"
        and its.name.split("-")[0] == "istio"
        and as_text(as_mapping(its.body.get("data")).get("mesh"))
    ):
        yield from _parse_mesh(its, lines, allowance)
        return
    if its.kind == "IstioOperator":
        path = ("spec", "meshConfig")
    elif its.kind == "Istio":
        path = ("spec", "values", "meshConfig")
    else:
        return
    body: Any = its.body
    for step in path:
        body = as_mapping(body).get(str(step))
    if isinstance(body, dict):
        yield _make_mesh(its.document, (*its.loc, *path), body, its.file)


def _parse_mesh(its: MeshObject, lines: list[str], allowance: Allowance) -> Iterator[MeshObject]:
    """Read the text in a ConfigMap, whose own lines count where it stands as a block.

    istiod reads those of its own namespace; a file may leave the namespace to ``kubectl -n``.
    """
    at = its.line("data", "mesh")
    is_block = _BLOCK.search(lines[at - 1].rstrip("\r")) is not None
    try:
        documents = parse_documents(its.body["data"]["mesh"], file=its.file, allowance=allowance)
    except ConfigError as error:
        line = at + error.problems[0].line if is_block else at
        raise ConfigError(ConfigProblem(file=its.file, line=line, message=error.problems[0].message)) from None
    for document in documents:
        known = document if is_block else Document(document.value, {(): 1})
        first = at + 1 if is_block else at
        mesh = _make_mesh(known, (), as_mapping(document.value), its.file, first_line=first, name=its.name)
        said = as_text(as_mapping(its.body.get("metadata")).get("namespace"))
        if said in ("", _ROOT, mesh.body.get("rootNamespace")):
            yield mesh
