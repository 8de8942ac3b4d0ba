"""From the file's text to a Policy, its providers and the server's settings: all of it good, or every problem."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from authz.config.document import Document, Loc, parse_document
from authz.config.listeners import compile_server
from authz.config.problems import Problems
from authz.config.providers import compile_provider
from authz.config.references import References
from authz.config.rules import RulesCompiler, compile_identity
from authz.config.schema import RulesFile
from authz.config.settings import ServerSettings
from authz.config.shape import parse_shape
from authz.core.cors import Cors
from authz.core.headers import plan_identity
from authz.core.hosts import HostIndex, HostKind, index_hosts, parse_host_pattern
from authz.core.policy import Policy
from authz.core.tables import Relation, build_guards, build_tables
from authz.model import ConfigError, ConfigProblem, Provider

_Key = tuple[HostKind, str]

MAX_FILE_BYTES: Final = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """All that one rules file says, compiled. ``files`` are what it was read from: a change of one is a reload."""

    policy: Policy
    providers: Mapping[str, Provider]
    server: ServerSettings
    files: frozenset[Path]
    text_digest: str


def load(path: Path, *, environ: Mapping[str, str]) -> Configuration:
    """Read and compile a rules file.

    Raises:
        ConfigError: with every problem found.

    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
        text = raw.decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(ConfigProblem(file=str(path), message=f"cannot be read: {_why(error)}")) from None
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(ConfigProblem(file=str(path), line=line, message="not utf-8: save it as utf-8")) from None
    return load_text(text, path=path, environ=environ)


def load_text(text: str, *, path: Path, environ: Mapping[str, str]) -> Configuration:
    """Compile a rules file's text; ``path`` is where it stands: relative files are looked for beside it.

    Raises:
        ConfigError: with every problem found.

    """
    document = parse_document(text, file=str(path))
    problems = Problems(document, file=str(path))
    folder = path.absolute().parent
    references = References(folder=folder, environ=environ, problems=problems)
    value = references.resolve(document.value)
    # What a missing reference brings is no value, which the schema would only report once more.
    problems.raise_if_any()
    shape = parse_shape(value, problems)
    if shape is None:
        problems.raise_if_any()
        raise ConfigError(ConfigProblem(file=str(path), message="cannot be understood"))
    configuration = _compile(shape, document, problems, folder)
    problems.raise_if_any()
    return Configuration(
        policy=configuration[0],
        providers=configuration[1],
        server=configuration[2],
        files=frozenset({path.absolute(), *references.files}),
        text_digest=hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16],
    )


def _compile(
    shape: RulesFile, document: Document, problems: Problems, folder: Path
) -> tuple[Policy, Mapping[str, Provider], ServerSettings]:
    server = compile_server(shape.server, folder, problems)
    providers = {
        name: compile_provider(name, part, ("providers", name), folder, problems)
        for name, part in shape.providers.items()
    }
    identity = compile_identity(shape.identity_headers, problems)
    compiler = RulesCompiler(identity, providers, document.line, problems)
    _check_unique([its.name for its in shape.rules], "rules", problems)
    _check_unique([its.name for its in shape.guards], "guards", problems)
    rules = tuple(compiler.compile_rule(part, ("rules", at)) for at, part in enumerate(shape.rules))
    guards = tuple(compiler.compile_guard(part, ("guards", at)) for at, part in enumerate(shape.guards))
    cors = _index_cors([compiler.compile_cors(part, ("cors", at)) for at, part in enumerate(shape.cors)], problems)
    relations, lines = _relations(shape.hosts, document, problems)
    found: list[ConfigProblem] = []
    # A rule none of whose paths can be read has its problem: nothing more is said of hosts that have no other.
    whole = tuple(its for its in rules if its.paths)
    hosts, all_hosts = ({host.key for its in some for host in its.hosts} for some in (whole, rules))
    tables = build_tables(
        whole, {key: its for key, its in relations.items() if key in hosts or key not in all_hosts}, lines, found
    )
    guard_tables = build_guards(guards, found)
    problems.extend(found)
    policy = Policy(
        rules=rules,
        guards=guards,
        tables=tables,
        guard_tables=guard_tables,
        identity=plan_identity(identity),
        cors=cors,
        trusted_hops=shape.client_address.trusted_hops,
    )
    return policy, providers, server


def _check_unique(names: Iterable[str], key: str, problems: Problems) -> None:
    seen: set[str] = set()
    for at, name in enumerate(names):
        if name in seen:
            problems.add((key, at, "name"), f"`{name}` is named twice: logs and metrics could not tell the two apart")
        seen.add(name)


def _index_cors(parts: list[Cors], problems: Problems) -> HostIndex[Cors]:
    found: dict[_Key, Cors] = {}
    for at, its in enumerate(parts):
        for host in its.hosts:
            if host.key in found:
                problems.add(("cors", at, "hosts"), f"`{host}` has a part already: keep one")
            found[host.key] = its
    return index_hosts(found)


def _relations(
    words: Mapping[str, str], document: Document, problems: Problems
) -> tuple[dict[_Key, Relation], dict[_Key, int]]:
    relations: dict[_Key, Relation] = {}
    lines: dict[_Key, int] = {}
    for text, word in words.items():
        loc: Loc = ("hosts", text)
        pattern = problems.attempt(loc, parse_host_pattern, text)
        if pattern is None:
            continue
        if pattern.key in relations:
            problems.add(loc, "is named twice: remove one")
        if pattern.kind is HostKind.EVERYWHERE:
            problems.add(loc, "rules for everywhere hide nothing and extend every host: remove the entry")
            continue
        relations[pattern.key] = Relation(word)
        lines[pattern.key] = document.line(loc)
    return relations, lines


def _why(error: OSError) -> str:
    return (error.strerror or "unreadable").lower()
