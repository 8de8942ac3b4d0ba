"""Servers under measurement: each a process tree of its own on the pinned core, with its CPU time and memory."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

STOP_S = 10.0


class Server:
    """One server. ``core`` is the only one that it may use; None leaves it all of them."""

    def __init__(
        self,
        name: str,
        command: list[str],
        *,
        port: int,
        core: int | None,
        folder: Path,
        environ: Mapping[str, str] = {},
    ) -> None:
        self.name = name
        self.port = port
        self._command = command
        self._core = core
        self._folder = folder
        self._environ = dict(environ)
        self._process: subprocess.Popen[bytes] | None = None
        self.http_port = 0
        self._began_s = 0.0

    def start(self) -> None:
        """Start it; its output goes to a file, as a container's would."""
        log = (self._folder / f"{self.name.replace(' ', '-')}.log").open("wb")
        cores = set(range(os.cpu_count() or 1)) if self._core is None else {self._core}
        self._process = subprocess.Popen(
            self._command,
            env=os.environ | self._environ,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=self._folder,
            start_new_session=True,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),  # noqa: PLW1509 - one thread, and nothing else there
        )
        log.close()
        self._began_s = time.monotonic()

    async def until_open(self, *, seconds: float = 60) -> None:
        """Wait until it takes connections."""
        async with asyncio.timeout(seconds):
            while True:
                if self._process is not None and self._process.poll() is not None:
                    raise RuntimeError(f"{self.name} has ended: see its log in {self._folder}")
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                    writer.close()
                    break
                await asyncio.sleep(0.01)

    def cpu_s(self) -> float:
        """Return the CPU time of the process and all below it, in seconds."""
        ticks = os.sysconf("SC_CLK_TCK")
        return sum(sum(map(int, _stat(pid)[11:13])) for pid in self._tree()) / ticks

    def pss_bytes(self) -> int:
        """Return the memory of the whole tree, shared pages counted by their share."""
        total = 0
        for pid in self._tree():
            with contextlib.suppress(OSError):
                text = Path(f"/proc/{pid}/smaps_rollup").read_text()
                total += sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
        return total * 1_024

    def age_s(self) -> float:
        """Return how long ago the process was started."""
        return time.monotonic() - self._began_s

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process that was started."""
        if self._process is not None:
            self._process.send_signal(number)

    def stop(self) -> None:
        """End the tree."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _tree(self) -> Iterator[int]:
        if self._process is None:
            return
        parents: dict[int, list[int]] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    parents.setdefault(int(_stat(int(entry.name))[1]), []).append(int(entry.name))
        rest = [self._process.pid]
        while rest:
            pid = rest.pop()
            yield pid
            rest.extend(parents.get(pid, ()))


def _stat(pid: int) -> list[str]:
    """Return the fields of a process from its state on: 1 is the parent, 11 and 12 the CPU times."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ["Z", "0", *["0"] * 20]


def free_port() -> int:
    """Return a port where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port
