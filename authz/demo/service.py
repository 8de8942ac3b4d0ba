"""The service as a process of its own, as an operator starts it: behind the fast door where that can open."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from authz.demo.proxy import end_process
from authz.model import ConfigError
from authz.servers.engine import find_engine, render_python_path

MAX_LINE_BYTES: Final = 1_048_576
READY_S: Final = 30.0
STOP_S: Final = 15.0


def choose_door() -> str:
    """Return the fast door where all that it needs is here, else the portable one."""
    try:
        find_engine(os.environ)
    except ConfigError:
        return "grpcio"
    return "fast"


class ServiceProcess:
    """One ``authz serve``. ``facts`` are what it said of itself when it was ready, ``address`` where it is asked."""

    def __init__(self, file: Path, *, environ: Mapping[str, str], sink: Callable[[str], None]) -> None:
        """``sink`` gets each decision line."""
        self._file = file
        self._environ = environ
        self._sink = sink
        self._process: asyncio.subprocess.Process | None = None
        self._readers: list[asyncio.Task[None]] = []
        self._said: deque[str] = deque(maxlen=20)
        self._serving = asyncio.Event()
        self.facts: Mapping[str, Any] = {}

    @property
    def address(self) -> str:
        """The address of its first listener."""
        return str(self.facts["addresses"][0])

    async def start(self) -> None:
        """Start it and wait until it is ready.

        Raises:
            RuntimeError: if it ends, or is not ready in time; with what it said.

        """
        self._process = process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "authz", "serve", str(self._file)),
            env={**os.environ, "PYTHONPATH": render_python_path(), **self._environ},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            limit=MAX_LINE_BYTES,
            start_new_session=True,  # a terminal's Ctrl-C is for us: we end it
        )
        ended = asyncio.create_task(process.wait())
        serving = asyncio.create_task(self._serving.wait())
        self._readers = [asyncio.create_task(its) for its in (self._read_lines(), self._read_log())]
        await asyncio.wait((ended, serving), timeout=READY_S, return_when=asyncio.FIRST_COMPLETED)
        serving.cancel()
        if not self._serving.is_set():
            await self.stop()
            raise RuntimeError("authz serve is not ready: " + " ".join(self._said))

    async def stop(self) -> None:
        """End it at once: nobody calls any more."""
        await end_process(self._process, STOP_S)
        await asyncio.gather(*self._readers)

    async def _read_lines(self) -> None:
        if self._process is not None and self._process.stdout is not None:
            async for line in self._process.stdout:
                self._sink(line.decode().rstrip("\n"))

    async def _read_log(self) -> None:
        if self._process is not None and self._process.stderr is not None:
            async for raw in self._process.stderr:
                line = raw.decode().rstrip("\n")
                self._said.append(line)
                if not self._serving.is_set() and '"event": "serving"' in line:
                    self.facts = json.loads(line)
                    self._serving.set()
