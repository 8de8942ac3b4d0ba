"""A change of content is noticed, whatever becomes of the folders; a touch is none."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from authz import watch
from authz.watch import digest_files, watch_files

SOON_S = 10


@contextlib.asynccontextmanager
async def watching(*paths: Path) -> AsyncIterator[asyncio.Event]:
    changed = asyncio.Event()

    async def note() -> None:
        changed.set()

    task = asyncio.create_task(watch_files(digest_files(paths), note))
    await asyncio.sleep(0.3)
    try:
        yield changed
        assert not task.done(), task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    file = tmp_path / "mount" / "rules.yaml"
    file.parent.mkdir()
    file.write_text("one")
    return file


async def test_a_change_is_noticed_and_a_touch_is_none(rules: Path) -> None:
    async with watching(rules) as changed:
        os.utime(rules)
        rules.write_text("one")
        await asyncio.sleep(0.6)
        assert not changed.is_set()
        rules.write_text("two")
        await asyncio.wait_for(changed.wait(), SOON_S)


async def test_a_folder_that_goes_and_comes_back_is_watched_on(rules: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "POLL_MS", 200)
    async with watching(rules) as changed:
        shutil.rmtree(rules.parent)
        await asyncio.wait_for(changed.wait(), SOON_S)
        changed.clear()
        await asyncio.sleep(0.5)
        rules.parent.mkdir()
        rules.write_text("three")
        await asyncio.wait_for(changed.wait(), SOON_S)


async def test_a_folder_that_is_not_there_yet_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "POLL_MS", 100)
    secret = tmp_path / "later" / "secret"
    async with watching(secret) as changed:
        secret.parent.mkdir()
        secret.write_text("here")
        await asyncio.wait_for(changed.wait(), SOON_S)


def test_what_cannot_be_read_counts_as_without_content(rules: Path) -> None:
    before = digest_files([rules])
    rules.unlink()
    assert digest_files([rules]) != before


async def test_a_change_before_the_watch_began_counts(rules: Path) -> None:
    changed = asyncio.Event()

    async def note() -> None:
        changed.set()

    known = digest_files([rules])
    rules.write_text("changed while the service was still starting")
    task = asyncio.create_task(watch_files(known, note))
    await asyncio.wait_for(changed.wait(), SOON_S)
    task.cancel()
