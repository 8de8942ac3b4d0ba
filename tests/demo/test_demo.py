"""``authz demo --once``, as a new user runs it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from authz.demo.idp import DemoProvider
from authz.demo.run import rows
from tests.parts import lacking, require_envoy


@pytest.mark.e2e
def test_every_row_comes_out_as_expected() -> None:
    require_envoy()
    command = [sys.executable, "-m", "authz", "demo", "--once"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    expected = rows(DemoProvider())
    assert f"{len(expected)} of {len(expected)} as expected" in done.stdout
    for row in expected:
        assert row.title in done.stdout
        assert row.reason in done.stdout


@pytest.mark.e2e
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_leaves_nothing_behind(number: signal.Signals, tmp_path: Path) -> None:
    require_envoy()
    command = [sys.executable, "-u", "-m", "authz", "demo"]
    environ = os.environ | {"TMPDIR": str(tmp_path)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environ)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if "Ctrl-C" in line:
                break
        assert list(tmp_path.glob("authz-demo-*"))
        process.send_signal(number)
        rest, _ = process.communicate(timeout=30)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0
    assert "Traceback" not in rest
    assert not list(tmp_path.iterdir())


@pytest.mark.e2e
def test_it_stays_up_and_its_curl_lines_work_as_printed() -> None:
    require_envoy()
    curl = shutil.which("curl") or lacking("curl", "apt-get install curl")
    assert curl
    command = [sys.executable, "-u", "-m", "authz", "demo"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines: list[str] = []
    try:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if "Ctrl-C" in line:
                break
        tries = [line.strip() for line in lines if line.strip().startswith("curl -i")]
        answers = [_status(its) for its in tries]
        assert answers == ["200", "401", "200"]
        stream = next(line.split()[-1] for line in lines if line.startswith("Decisions"))
        assert stream.startswith("http://127.0.0.1:")
        process.send_signal(signal.SIGINT)
        process.wait(timeout=30)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0


def _status(command: str) -> str:
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=30, check=True)
    return done.stdout.split()[1]
