"""Notice that files have changed, also by the symlink swap with which Kubernetes renews ConfigMaps and Secrets.

The parent folders are watched, not the files: a swap replaces a folder above them. What counts is the content, so a
touch or a rewrite of the same bytes is no change.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from pathlib import Path
from typing import Final

from watchfiles import awatch

DEBOUNCE_MS: Final = 200
POLL_MS: Final = 10_000
"""A look at the contents all the same, this often: some file systems tell of no change."""


async def watch_files(paths: Collection[Path], on_change: Callable[[], Awaitable[None]]) -> None:
    """Call ``on_change`` after each change of content, until cancelled.

    Where the system cannot tell of changes (a folder that is gone, no watches left) the contents are looked at alone.
    """
    known = await asyncio.to_thread(digest_files, paths)
    while True:
        async for _ in _hints(paths):
            now = await asyncio.to_thread(digest_files, paths)
            if now != known:
                known = now
                await on_change()


async def _hints(paths: Collection[Path]) -> AsyncIterator[None]:
    """Yield whenever something may have changed, at the latest after POLL_MS."""
    folders = {folder for path in paths for folder in (path.parent, path.resolve().parent) if folder.is_dir()}
    if folders:
        with contextlib.suppress(OSError, RuntimeError):  # what the watcher's own errors are
            async for _ in awatch(
                *folders, debounce=DEBOUNCE_MS, recursive=False, rust_timeout=POLL_MS, yield_on_timeout=True
            ):
                yield
    await asyncio.sleep(POLL_MS / 1_000)
    yield


def digest_files(paths: Collection[Path]) -> bytes:
    """Return a digest of all contents; a file that cannot be read counts as one without content."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(str(path).encode())
        try:
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        except OSError:
            digest.update(b"unreadable")
    return digest.digest()
