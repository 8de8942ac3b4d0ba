"""One provider's keys among the workers of one host: whichever comes first fetches, and all take what it brought.

A folder that only these processes can enter holds one small file a provider, replaced in one step, and a lock that is
held while a fetch is under way and ends with whoever holds it. Times are of the clock that all processes of a host
share. What cannot be read or written costs a fetch more, and no check.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from authz.clients.keyfile import replace_file
from authz.model import Provider

TRY_AGAIN_S: Final = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """What the last attempt of any worker came to. Times are seconds of the monotonic clock.

    ``jwks`` is the last good document and ``fetched_s`` when its fetch began, None where there is none; ``error`` is
    empty where the attempt that ended at ``ended_s`` brought it, and ``failures`` counts those in a row that did
    not. ``forced_s`` is when a check last made somebody fetch.
    """

    ended_s: float
    forced_s: float | None
    fetched_s: float | None
    jwks: str
    failures: int
    error: str


class KeyShare:
    """One provider's file. Two providers, or two settings of one, never meet in it."""

    def __init__(self, provider: Provider, folder: Path) -> None:
        settings = f"{provider.name} {provider.issuer} {provider.internal_url} {provider.keys} {provider.http}"
        name = hashlib.sha256(settings.encode()).hexdigest()[:32]
        self._file = folder / f"{name}.json"
        self._lock = folder / f"{name}.lock"
        self._stamp = (0, 0)
        self._last: Attempt | None = None
        self.patience_s = 2 * provider.http.timeout_s + 1
        """Longer than a fetch takes, discovery included: whoever holds the lock beyond that hangs."""

    def read(self) -> Attempt | None:
        """Return the last attempt; None where there is none, or none that can be understood."""
        try:
            status = self._file.stat()
            stamp = (status.st_mtime_ns, status.st_ino)
            if stamp != self._stamp:
                self._last = Attempt(**json.loads(self._file.read_bytes()))
                self._stamp = stamp
        except (OSError, ValueError, TypeError):
            return None
        return self._last

    def write(self, attempt: Attempt) -> None:
        """Put an attempt in the last one's place.

        Raises:
            OSError: as the system says.

        """
        replace_file(self._file, json.dumps(asdict(attempt)))

    @contextlib.asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Fetch alone, after waiting for whoever does; beside one that hangs, and where there is no lock to be had."""
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):
                lock = stack.enter_context(self._lock.open("wb"))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self.patience_s):
                        while not _take(lock.fileno()):  # noqa: ASYNC110 - another process holds it
                            await asyncio.sleep(TRY_AGAIN_S)
            yield


def _take(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
