"""The rings hold: imports go one way, the core is pure, and one place writes the wire's answer."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import authz

ROOT = Path(authz.__file__).parent
RINGS = (
    ("authz.pb", "authz.model", "authz.quick", "authz.turns"),
    ("authz.core", "authz.reasons"),
    ("authz.lines",),
    ("authz.cache", "authz.observe"),
    ("authz.config", "authz.clients", "authz.watch", "authz.curl"),
    ("authz.proxy_tls", "authz.envoy_config", "authz.istio_config", "authz.mesh"),
    ("authz.gate", "authz.found"),
    ("authz.explain",),
    ("authz.report",),
    ("authz.servers",),
    ("authz.app",),
    ("authz.worker",),
    ("authz.supervisor",),
    ("authz.demo", "authz.dry_run"),
    ("authz.cli",),
    ("authz.__main__",),
)
IMPURE = frozenset(
    [
        "asyncio",
        "time",
        "datetime",
        "random",
        "secrets",
        "os",
        "socket",
        "logging",
        "structlog",
        "httpx",
        "grpc",
        "pydantic",
        "threading",
        "subprocess",
    ]
)
MODULES = sorted(path for path in ROOT.rglob("*.py") if "pb" not in path.relative_to(ROOT).parts)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def ring_of(name: str) -> int:
    for number, prefixes in enumerate(RINGS):
        if any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes):
            return number
    pytest.fail(f"{name} is in no ring: add it to RINGS")


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield node.module or ""
            if node.module == "authz":
                yield from (f"authz.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_go_one_way(path: Path) -> None:
    name = module_name(path)
    if name == "authz":
        return
    own = ring_of(name)
    for other in imports(path):
        if other.startswith("authz.") and other != "authz.__version__":
            assert ring_of(other) <= own, f"{name} imports {other}, which lies further out"


@pytest.mark.parametrize("path", [*(ROOT / "core").glob("*.py"), ROOT / "model.py"], ids=module_name)
def test_the_core_neither_waits_nor_looks_around(path: Path) -> None:
    tops = {name.partition(".")[0] for name in imports(path)}
    assert not tops & IMPURE
    tree = ast.parse(path.read_text())
    waits = (ast.Await, ast.AsyncFunctionDef, ast.AsyncFor, ast.AsyncWith)
    assert not [node for node in ast.walk(tree) if isinstance(node, waits)]
    called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert not called & {"open", "print", "input", "eval", "exec"}


def test_one_module_builds_check_responses() -> None:
    """INVARIANT ONE-CONSTRUCTOR."""
    builders = [path for path in MODULES if re.search(r"\bCheckResponse\(", path.read_text())]
    assert builders == [ROOT / "servers" / "envoy.py"]


def test_one_place_catches_everything() -> None:
    found = []
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler):
                names = (
                    {part.id for part in ast.walk(node.type) if isinstance(part, ast.Name)} if node.type else {"all"}
                )
                if names & {"Exception", "BaseException", "all"}:
                    found.append(path)
    assert found == [ROOT / "servers" / "check.py"]


def test_nothing_asserts() -> None:
    for path in MODULES:
        assert not [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Assert)], path


def test_values_are_frozen() -> None:
    for info in pkgutil.walk_packages(authz.__path__, "authz."):
        if info.name.startswith("authz.pb") or info.name == "authz.__main__":
            continue
        module = importlib.import_module(info.name)
        for value in vars(module).values():
            if isinstance(value, type) and dataclasses.is_dataclass(value) and value.__module__ == info.name:
                # The tries and method tables are filled once, at load, by the module beside them.
                if value.__name__ in {"Node", "Methods"}:
                    continue
                assert value.__dataclass_params__.frozen, f"{info.name}.{value.__name__}"  # type: ignore[attr-defined]


def test_modules_import_in_a_bare_process() -> None:
    """Nothing happens at import: no environment is read, no socket opened."""
    names = [module_name(path) for path in MODULES if path.name != "__main__.py"]
    code = (
        "import socket, importlib\n"
        "def refuse(*args, **kwargs): raise RuntimeError('a socket at import')\n"
        "socket.socket.connect = refuse\n"
        "socket.socket.bind = refuse\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={}, cwd=ROOT.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


# --- tests -----------------------------------------------------------------------------------------------------------


def replacements(source: str) -> list[str]:
    """Return what a test puts in the place of our own code; times and limits, whose names are capitals, are none.

    Whatever is not known to be somebody else's counts as ours: a fixture may be an object of ours.
    """
    tree = ast.parse(source)
    others, ours = _imported(tree)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if "patch" in called.split(".") or called.endswith("create_autospec"):
                found.append(called)
            elif called.endswith(".setattr"):
                target, name = node.args[0], node.args[1] if len(node.args) > 1 else None
                if isinstance(target, ast.Constant):
                    holder, _, attribute = str(target.value).rpartition(".")
                    is_ours = holder.partition(".")[0] == "authz"
                else:
                    attribute = str(name.value) if isinstance(name, ast.Constant) else ""
                    is_ours = ast.unparse(target).partition(".")[0] not in others
                if is_ours and not attribute.isupper():
                    found.append(ast.unparse(node))
        elif isinstance(node, ast.Assign):
            found += [
                ast.unparse(its)
                for its in node.targets
                if isinstance(its, ast.Attribute)
                and ast.unparse(its).partition(".")[0] in ours
                and not its.attr.isupper()
            ]
    return found


def _imported(tree: ast.AST) -> tuple[set[str], set[str]]:
    """Return the names that a file takes from elsewhere, and those it takes from us."""
    names: dict[bool, set[str]] = {True: set(), False: set()}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                module = alias.name if isinstance(node, ast.Import) else node.module or ""
                bound = (alias.asname or alias.name).partition(".")[0]
                names[module.partition(".")[0] == "authz"].add(bound)
    return names[False], names[True]


@pytest.mark.parametrize("path", sorted((ROOT.parent / "tests").rglob("*.py")), ids=lambda its: its.name)
def test_no_test_replaces_our_own_code(path: Path) -> None:
    """The network is faked in bytes, and what is tested is what runs."""
    assert replacements(path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        'mock.patch("authz.watch.digest_files")',
        'patch("authz.watch.digest_files")',
        'with patch.object(watch, "digest_files"): pass',
        '@mock.patch.object(watch, "digest_files")\ndef test(): pass',
        'mocker.patch("authz.watch.digest_files")',
        'monkeypatch.setattr("authz.watch.digest_files", None)',
        'from authz import watch\nmonkeypatch.setattr(watch, "digest_files", None)',
        'import authz.watch\nmonkeypatch.setattr(authz.watch, "digest_files", None)',
        'import authz.watch as w\nmonkeypatch.setattr(w, "digest_files", None)',
        'from authz.gate import Gate\nmonkeypatch.setattr(Gate, "check", None)',
        'from authz.gate import Gate\nmp.setattr(Gate, "_decide", None)',
        'monkeypatch.setattr(gate, "check", None)',
        "from authz.gate import Gate\nmonkeypatch.setattr(Gate, name, None)",
        "from authz import watch\nwatch.digest_files = None",
        "from authz.gate import Gate\nGate.check = None",
        "create_autospec(Gate)",
    ],
)
def test_a_replacement_is_seen(source: str) -> None:
    assert len(replacements(source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        'from authz import watch\nmonkeypatch.setattr(watch, "POLL_MS", 1)',
        'monkeypatch.setattr("authz.watch.POLL_MS", 1)',
        "from authz import watch\nwatch.POLL_MS = 1",
        'import sys\nmonkeypatch.setattr(sys, "argv", [])',
        'monkeypatch.setattr("sys.argv", [])',
        'monkeypatch.setenv("A", "b")',
        "provider.delay_s = 1",
        "setattr(message, name, value)",
    ],
)
def test_a_time_or_a_limit_may_be_set_and_so_may_what_is_not_ours(source: str) -> None:
    assert replacements(source) == []
