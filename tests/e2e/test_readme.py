"""The quick start of the README does what it promises, run as it stands there."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fakes import Signer
from tests.parts import free_port, require_envoy

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text()
START_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class QuickStart:
    """The block, running: its process, the ports that stand for the README's, the folder that it may write to."""

    process: subprocess.Popen[str]
    ports: dict[str, int]
    folder: Path

    def ask(self, command: str, more: str = "") -> str:
        """Return the answer to one of the README's commands, with ``more`` behind it."""
        for name, port in self.ports.items():
            command = command.replace(name, str(port))
        done = subprocess.run(
            ["bash", "-c", f"{command} {more}"], capture_output=True, text=True, timeout=30, check=False
        )
        return done.stdout


@pytest.fixture
def quick_start(tmp_path: Path) -> Iterator[QuickStart]:
    require_envoy()
    ports = {name: free_port() for name in ("9001", "9002", "10000", "8080")}
    found = re.search(r"## Your own Envoy\n.*?```sh\n(.*?)```", README, re.DOTALL)
    assert found is not None
    # Only the ports differ, and what lets several Envoys run on one machine.
    block = _replace(found[1], "8080", f"{ports['8080']} --listen 127.0.0.1:{ports['10000']}")
    server = f'server: {{grpc: [{{address: "127.0.0.1:{ports["9001"]}"}}], http: "127.0.0.1:{ports["9002"]}"}}'
    block = _replace(block, "rules:\n", f"{server}\nrules:\n")
    block = _replace(block, "envoy -c", "envoy --use-dynamic-base-id -c")
    stop = re.search(r"`(kill [^`]*)`", README)
    assert stop is not None
    script = f"set -e\n{block}\nread -r _\n{stop[1]}\nwait\n"
    programs = Path(sys.executable).parent
    environ = os.environ | {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "TMPDIR": str(tmp_path),
        "PYTHONPATH": str(ROOT),
    }
    upstream = subprocess.Popen(
        [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(ports["8080"])],
        cwd=ROOT / "docs", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    process = subprocess.Popen(
        ["bash", "-c", script], cwd=ROOT, env=environ, start_new_session=True, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield QuickStart(process=process, ports=ports, folder=tmp_path)
    finally:
        for its in (upstream, process):
            its.kill()
            its.communicate()
        _end_group(process.pid)


def test_the_quick_start_does_what_it_promises(quick_start: QuickStart) -> None:
    page, orders = re.findall(r"`(curl -i [^`]*)`", README)
    deadline_s = time.monotonic() + START_S
    while " 200 " not in _first_line(quick_start.ask(page)):
        assert quick_start.process.poll() is None, "a command of the block failed"
        assert time.monotonic() < deadline_s, quick_start.ask(page)
        time.sleep(0.2)
    assert "Directory listing" in quick_start.ask(page), "the upstream's page"
    refused = quick_start.ask(orders)
    assert " 401 " in _first_line(refused)
    assert "www-authenticate: Bearer" in refused
    issuer = re.search(r'issuer: "([^"]+)"', README)
    assert issuer is not None
    token = Signer().sign({"iss": issuer[1], "aud": "orders-api", "exp": 4_000_000_000, "typ": "Bearer"}, typ="JWT")
    unknown = quick_start.ask(orders, f"-H 'authorization: Bearer {token}'")
    assert " 503 " in _first_line(unknown)
    assert "retry-after:" in unknown
    quick_start.process.communicate("\n", timeout=40)
    assert not _answers(quick_start.ports["9001"])
    assert not _answers(quick_start.ports["10000"])
    (made,) = quick_start.folder.iterdir()
    assert {its.name for its in made.iterdir()} == {"rules.yaml", "envoy.yaml"}


def _replace(text: str, old: str, new: str) -> str:
    assert text.count(old) == 1, old
    return text.replace(old, new)


def _first_line(head: str) -> str:
    return head.partition("\r\n")[0]


def _answers(port: int) -> bool:
    with socket.socket() as caller:
        return caller.connect_ex(("127.0.0.1", port)) == 0


def _end_group(group: int) -> None:
    """End what the block started, where it did not come to that itself."""
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return
