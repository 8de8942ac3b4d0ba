"""Notice that files have changed, also by the symlink swap with which Kubernetes renews ConfigMaps and Secrets.

The parent folders are watched, not the files: a swap replaces a folder above them. What counts is the content, so a
touch or a rewrite of the same bytes is no change.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Final

from watchfiles import awatch

from authz.config.references import UNREADABLE, digest

DEBOUNCE_MS: Final = 200
POLL_MS: Final = 1_000
"""A look at sizes and times all the same, this often: some file systems tell of no change, and none of one that comes
while the watch begins."""


async def watch_files(known: Mapping[Path, bytes], on_change: Callable[[], Awaitable[None]]) -> None:
    """Call ``on_change`` after each change of content, until cancelled.

    ``known`` are the files with :func:`digest` of what was read of them, so that a change since then counts too. Where
    the system cannot tell of changes (a folder that is gone, no watches left) the contents are looked at alone.
    """
    seen = dict(known)
    stamps: list[tuple[int, int, int] | None] = []
    while True:
        async for told in _hints(seen):
            before, stamps = stamps, await asyncio.to_thread(_stamp_files, seen)
            if not told and stamps == before:
                continue
            now = await asyncio.to_thread(digest_files, seen)
            if now != seen:
                seen = now
                await on_change()


async def _hints(paths: Collection[Path]) -> AsyncIterator[bool]:
    """Yield at once, and whenever something may have changed: True where the system says so, else after POLL_MS."""
    yield True
    folders = {folder for path in paths for folder in (path.parent, path.resolve().parent) if folder.is_dir()}
    if folders:
        with contextlib.suppress(OSError, RuntimeError):  # what the watcher's own errors are
            async for changes in awatch(
                *folders, debounce=DEBOUNCE_MS, recursive=False, rust_timeout=POLL_MS, yield_on_timeout=True
            ):
                yield bool(changes)
    await asyncio.sleep(POLL_MS / 1_000)
    yield False


def _stamp_files(paths: Iterable[Path]) -> list[tuple[int, int, int] | None]:
    """Return what nearly always changes with a file's content, at the cost of a look at each."""
    found: list[tuple[int, int, int] | None] = []
    for path in paths:
        try:
            status = path.stat()
        except OSError:
            found.append(None)
        else:
            found.append((status.st_mtime_ns, status.st_size, status.st_ino))
    return found


def digest_files(paths: Iterable[Path]) -> dict[Path, bytes]:
    """Return the digest of each file's content."""
    found: dict[Path, bytes] = {}
    for path in paths:
        try:
            found[path] = digest(path.read_bytes())
        except OSError:
            found[path] = UNREADABLE
    return found
