"""From the file's text to a Policy, its providers and the server's settings: all of it good, or every problem."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from authz.config.document import MAX_BYTES, Document, Loc, parse_document
from authz.config.listeners import compile_server
from authz.config.problems import Problems
from authz.config.providers import compile_provider
from authz.config.references import UNREADABLE, References, digest
from authz.config.rules import RulesCompiler, compile_identity
from authz.config.schema import GuardPart, RulePart
from authz.config.settings import ServerSettings
from authz.config.shape import Shape, parse_shape
from authz.core.cors import Cors
from authz.core.hosts import HostIndex, HostKind, index_hosts, parse_host_pattern
from authz.core.policy import Policy
from authz.core.tables import Relation, build_guards, build_tables
from authz.model import ConfigError, ConfigProblem, Provider

_Key = tuple[HostKind, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """All that one rules file says, compiled.

    ``files`` are what it was read from, each with the digest of its content then: a change of one is a reload.
    """

    policy: Policy
    providers: Mapping[str, Provider]
    server: ServerSettings
    files: Mapping[Path, bytes]


def load(path: Path, *, environ: Mapping[str, str]) -> Configuration:
    """Read and compile a rules file.

    Raises:
        ConfigError: with every problem found.

    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        why = f"cannot be read: {(error.strerror or 'unreadable').lower()}"
        raise ConfigError(ConfigProblem(file=str(path), message=why), files={path.absolute(): UNREADABLE}) from None
    try:
        # What is too large was cut anywhere, also inside a character.
        text = raw.decode("utf-8", "strict" if len(raw) <= MAX_BYTES else "replace")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        problem = ConfigProblem(file=str(path), line=line, message="not utf-8: save it as utf-8")
        raise ConfigError(problem, files={path.absolute(): digest(raw)}) from None
    return load_text(text, path=path, environ=environ)


def load_text(text: str, *, path: Path, environ: Mapping[str, str]) -> Configuration:
    """Compile a rules file's text; ``path`` is where it stands: relative files are looked for beside it.

    Raises:
        ConfigError: with every problem found.

    """
    files = {path.absolute(): digest(text.encode("utf-8", "surrogatepass"))}
    try:
        return _load_text(text.removeprefix("\ufeff"), path, environ, files)
    except ConfigError as error:
        raise ConfigError(*error.problems, files=files, incomplete=error.incomplete) from None


def _load_text(text: str, path: Path, environ: Mapping[str, str], files: dict[Path, bytes]) -> Configuration:
    """Compile, and note in ``files`` what else was read."""
    try:
        document = parse_document(text, file=str(path))
    except ConfigError as error:
        raise ConfigError(*error.problems, incomplete=True) from None
    if document.value is None:
        raise ConfigError(ConfigProblem(file=str(path), message="the file is empty: start with `version: 1`"))
    problems = Problems(document, file=str(path))
    folder = path.absolute().parent
    references = References(folder=folder, environ=environ, problems=problems, files=files)
    value = references.resolve(document.value)
    shape = parse_shape(value, problems, unresolved=references.unresolved)
    if shape is None:
        problems.raise_if_any(incomplete=True)
        raise ConfigError(ConfigProblem(file=str(path), message="cannot be understood"))
    # Also what is left of a broken file, so that one run tells of every problem; none of it is put in force.
    partial = bool(shape.left_out or document.problems)
    configuration = _compile(shape, document, problems, folder, partial=partial)
    problems.raise_if_any(incomplete=partial)
    if partial:
        raise ConfigError(ConfigProblem(file=str(path), message="cannot be understood"))
    return Configuration(
        policy=configuration[0],
        providers=configuration[1],
        server=configuration[2],
        files=files,
    )


def _compile(
    shape: Shape, document: Document, problems: Problems, folder: Path, *, partial: bool
) -> tuple[Policy, Mapping[str, Provider], ServerSettings]:
    file = shape.file
    server = compile_server(file.server, folder, problems)
    providers = {
        name: compile_provider(name, part, ("providers", name), folder, problems)
        for name, part in file.providers.items()
    }
    identity = compile_identity(file.identity_headers, problems)
    compiler = RulesCompiler(identity, providers, document.line, problems, lacks=shape.lacks)
    _check_unique(shape.place("rules", file.rules), problems)
    _check_unique(shape.place("guards", file.guards), problems)
    rules = tuple(compiler.compile_rule(part, loc) for loc, part in shape.place("rules", file.rules))
    guards = tuple(compiler.compile_guard(part, loc) for loc, part in shape.place("guards", file.guards))
    cors = _index_cors(
        [(loc, compiler.compile_cors(part, loc)) for loc, part in shape.place("cors", file.cors)], problems
    )
    relations, lines = _relations(file.hosts, document, problems)
    found: list[ConfigProblem] = []
    # A rule none of whose paths can be read has its problem: nothing more is said of hosts that have no other.
    whole = tuple(its for its in rules if its.paths)
    hosts, all_hosts = ({host.key for its in some for host in its.hosts} for some in (whole, rules))
    tables = build_tables(
        whole, {key: its for key, its in relations.items() if key in hosts or key not in all_hosts}, lines, found
    )
    guard_tables = build_guards(guards, found)
    # Without some rules an entry of `hosts` may seem to do nothing, and without some entries a host to hide others.
    problems.extend(its for its in found if not partial or its.path.startswith("rules["))
    policy = Policy(
        rules=rules,
        guards=guards,
        tables=tables,
        guard_tables=guard_tables,
        cors=cors,
        trusted_hops=file.client_address.trusted_hops,
    )
    return policy, providers, server


def _check_unique(parts: Iterable[tuple[Loc, RulePart | GuardPart]], problems: Problems) -> None:
    seen: set[str] = set()
    for loc, part in parts:
        if part.name in seen:
            text = f"`{part.name}` is named twice: logs and metrics could not tell the two apart"
            problems.add((*loc, "name"), text)
        seen.add(part.name)


def _index_cors(parts: Iterable[tuple[Loc, Cors]], problems: Problems) -> HostIndex[Cors]:
    found: dict[_Key, Cors] = {}
    for loc, its in parts:
        for host in its.hosts:
            if host.key in found:
                problems.add((*loc, "hosts"), f"`{host}` has a part already: keep one")
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
