"""The workers of one host fetch a provider's keys once for all, and none of them depends on another."""

from __future__ import annotations

import asyncio
import fcntl
import json
from pathlib import Path
from typing import Any

import pytest

from authz.clients import jwks as key_source
from authz.clients.authenticate import Authenticator
from authz.model import Reason
from tests.clients.conftest import Make, refused
from tests.fakes import HANG, Events, FakeClock, FakeProvider, Signer, http, jwks


async def knows(worker: Authenticator, token: str) -> bool:
    return (await worker.authenticate(token)).principal.subject == "alice"


async def knows_soon(worker: Authenticator, key: Signer) -> None:
    """Wait until a worker has a key, without asking it for anything."""
    async with asyncio.timeout(10):
        while (keys := worker.keys.match_keys() if worker.keys else None) is None or key.kid not in {
            its.kid for its in keys.keys
        }:
            await asyncio.sleep(0.01)


@pytest.fixture
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have workers look at what others fetched a hundred times a second."""
    monkeypatch.setattr(key_source, "LOOK_S", 0.01)


async def test_workers_that_start_together_fetch_once(
    make: Make, signer: Signer, claims: dict[str, Any], idp: FakeProvider, tmp_path: Path
) -> None:
    idp.delay_s = 0.1
    workers = [make(shared=tmp_path) for _ in range(8)]
    await asyncio.gather(*(its.start() for its in workers))
    assert idp.count("/jwks") == 1
    token = signer.sign(claims)
    assert [await knows(its, token) for its in workers] == [True] * 8
    assert all(its.status().healthy for its in workers)
    # A worker by itself asks for itself.
    await make().start()
    assert idp.count("/jwks") == 2


async def test_a_worker_in_a_crashed_ones_place_needs_no_provider(
    make: Make, signer: Signer, claims: dict[str, Any], clock: FakeClock, idp: FakeProvider, tmp_path: Path
) -> None:
    await make(shared=tmp_path).start()
    clock.advance(100)
    idp.answers["/jwks"] = http(500)
    second = make(shared=tmp_path)
    await second.start()
    assert await knows(second, signer.sign(claims))
    assert (idp.count("/jwks"), second.status().keys_age_s) == (1, 100)
    # What is due for a refresh anyhow is fetched, and kept where that fails.
    clock.advance(200)
    third = make(shared=tmp_path)
    await third.start()
    assert idp.count("/jwks") == 2
    claims["exp"] += 300
    assert await knows(third, signer.sign(claims))
    assert "answered 500" in third.status().last_error


@pytest.mark.usefixtures("brisk")
async def test_a_new_key_that_one_worker_sees_is_every_workers(
    make: Make, signer: Signer, claims: dict[str, Any], clock: FakeClock, idp: FakeProvider, tmp_path: Path
) -> None:
    first, second = make(shared=tmp_path), make(shared=tmp_path)
    await asyncio.gather(first.start(), second.start())
    newer = Signer("k2")
    idp.answers["/jwks"] = jwks(newer)
    clock.advance(60)
    gone = signer.sign(claims)
    assert await knows(second, gone)
    assert await knows(first, newer.sign(claims))
    await knows_soon(second, newer)
    assert await knows(second, newer.sign(claims))
    assert idp.count("/jwks") == 2
    # The key that left took its tokens with it there too, and for nobody is it asked about again so soon.
    for its in (first, second):
        assert (await refused(its.authenticate(gone)))[0] is Reason.KEY_REFETCH_HELD_BACK
    assert idp.count("/jwks") == 2
    clock.advance(31)
    assert (await refused(second.authenticate(gone)))[0] is Reason.JWT_UNKNOWN_KEY
    assert idp.count("/jwks") == 3


async def test_a_new_key_that_another_worker_fetched_a_moment_ago_is_not_held_back(
    make: Make, signer: Signer, claims: dict[str, Any], clock: FakeClock, idp: FakeProvider, tmp_path: Path
) -> None:
    first, second = make(shared=tmp_path), make(shared=tmp_path)
    await asyncio.gather(first.start(), second.start())
    newer = Signer("k2")
    idp.answers["/jwks"] = jwks(signer, newer)
    clock.advance(60)
    assert await knows(first, newer.sign(claims))
    clock.advance(0.1)  # too soon for the other to have looked
    assert await knows(second, newer.sign(claims))
    assert (await refused(second.authenticate(Signer("k9").sign(claims))))[0] is Reason.KEY_REFETCH_HELD_BACK
    assert idp.count("/jwks") == 2


async def test_keys_from_disk_are_shared_and_a_failed_fetch_takes_none_away(
    make: Make, signer: Signer, claims: dict[str, Any], clock: FakeClock, idp: FakeProvider, tmp_path: Path
) -> None:
    keys = {"cache_dir": str(tmp_path / "disk")}
    await make(keys=keys).start()
    (tmp_path / "shared").mkdir()
    idp.answers["/jwks"] = http(500)
    clock.advance(100)
    first, second = make(keys=keys, shared=tmp_path / "shared"), make(keys=keys, shared=tmp_path / "shared")
    await first.start()
    clock.advance(1)
    await second.start()
    for its in (first, second):
        assert await knows(its, signer.sign(claims))
        assert "answered 500" in its.status().last_error
    bare = make(shared=tmp_path / "shared", keys=keys)
    (file,) = (tmp_path / "disk").iterdir()
    file.unlink()
    clock.advance(1)
    await bare.start()
    assert await knows(bare, signer.sign(claims)), "what the others have from disk is everybody's"


async def test_unknown_keys_at_all_workers_make_one_fetch(
    make: Make, claims: dict[str, Any], clock: FakeClock, idp: FakeProvider, tmp_path: Path
) -> None:
    workers = [make(shared=tmp_path) for _ in range(4)]
    await asyncio.gather(*(its.start() for its in workers))
    clock.advance(60)
    token = Signer("k9").sign(claims)
    assert (await refused(workers[0].authenticate(token)))[0] is Reason.JWT_UNKNOWN_KEY
    clock.advance(1)  # the others have not looked yet: they learn of it when they would fetch
    reasons = {(await refused(its.authenticate(token)))[0] for its in workers[1:] for _ in range(10)}
    assert reasons == {Reason.KEY_REFETCH_HELD_BACK}
    assert idp.count("/jwks") == 2


async def test_who_waited_for_anothers_fetch_has_its_failure(
    make: Make, claims: dict[str, Any], signer: Signer, clock: FakeClock, idp: FakeProvider, tmp_path: Path
) -> None:
    idp.answers["/jwks"] = http(500)
    idp.delay_s = 0.1
    workers = [make(shared=tmp_path) for _ in range(3)]
    await asyncio.gather(*(its.start() for its in workers))
    assert idp.count("/jwks") == 1
    assert ["answered 500" in its.status().last_error for its in workers] == [True] * 3
    idp.answers["/jwks"] = jwks(signer)
    clock.advance(1)
    assert await knows(workers[2], signer.sign(claims))
    assert workers[2].status().last_error == ""


@pytest.mark.usefixtures("brisk")
async def test_a_failed_provider_is_tried_again_by_whoever_comes_first(
    make: Make, signer: Signer, claims: dict[str, Any], clock: FakeClock, idp: FakeProvider, tmp_path: Path
) -> None:
    idp.answers["/jwks"] = http(500)
    workers = [make(shared=tmp_path, keys={"refresh_s": 0.2}) for _ in range(3)]
    await asyncio.gather(*(its.start() for its in workers))
    idp.answers["/jwks"] = jwks(signer)

    async def pass_time() -> None:
        while True:
            clock.advance(0.01)
            await asyncio.sleep(0.01)

    passing = asyncio.create_task(pass_time())
    for its in workers:
        await knows_soon(its, signer)
        assert await knows(its, signer.sign(claims))
    passing.cancel()


async def test_a_worker_that_hangs_with_the_lock_holds_nobody_up_for_long(
    make: Make, signer: Signer, claims: dict[str, Any], idp: FakeProvider, tmp_path: Path
) -> None:
    worker = make(shared=tmp_path, http={"timeout_s": 0.2})
    share = worker.keys._share if worker.keys else None
    assert share is not None
    with share._lock.open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        async with asyncio.timeout(10):
            await worker.start()
    assert await knows(worker, signer.sign(claims))
    assert idp.count("/jwks") == 1


DAMAGED = {"ended_s": 2e3, "forced_s": None, "fetched_s": 2e3, "jwks": "{}", "failures": 0, "error": ""}


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"error": ""}', json.dumps(DAMAGED).encode()])
async def test_a_file_that_cannot_be_read_costs_a_fetch(
    make: Make, signer: Signer, claims: dict[str, Any], idp: FakeProvider, tmp_path: Path, content: bytes
) -> None:
    await make(shared=tmp_path).start()
    (file,) = tmp_path.glob("*.json")
    file.write_bytes(content)
    second = make(shared=tmp_path)
    await second.start()
    assert await knows(second, signer.sign(claims))
    assert idp.count("/jwks") == 2


async def test_a_folder_that_is_gone_costs_a_fetch_and_shows(
    make: Make, signer: Signer, claims: dict[str, Any], idp: FakeProvider, events: Events, tmp_path: Path
) -> None:
    for count in (1, 2):
        worker = make(shared=tmp_path / "gone")
        await worker.start()
        assert await knows(worker, signer.sign(claims))
        assert idp.count("/jwks") == count
    assert "the other workers cannot be told" in events.details("key_file_failed")[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "other"},
        {"issuer": "https://other.example.com"},
        {"internal_url": "http://inside.example.com"},
        {"keys": {"max_stale_s": 7.0}},
        {"http": {"ca_file": None, "max_body_bytes": 7_000}},
    ],
)
async def test_two_providers_never_share(
    make: Make, idp: FakeProvider, tmp_path: Path, changes: dict[str, Any]
) -> None:
    await make(shared=tmp_path).start()
    await make(shared=tmp_path, **changes).start()
    assert idp.count("/jwks") == 2
    await make(shared=tmp_path).start()
    assert idp.count("/jwks") == 2


async def test_what_ends_while_it_fetches_leaves_the_lock(
    make: Make, signer: Signer, claims: dict[str, Any], idp: FakeProvider, tmp_path: Path
) -> None:
    idp.answers["/jwks"] = HANG
    first, second = make(shared=tmp_path), make(shared=tmp_path)
    starting = asyncio.create_task(first.start())
    async with asyncio.timeout(5):
        while not idp.count("/jwks"):
            await asyncio.sleep(0.01)
    idp.answers["/jwks"] = jwks(signer)
    await first.close()
    await starting
    await second.start()
    assert await knows(second, signer.sign(claims))
