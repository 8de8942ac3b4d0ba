"""Workers as one service: restarted, summed, told to reload, and never without somebody who minds them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from authz.clients.jwks import LOOK_S
from authz.config import load
from authz.model import ConfigError
from authz.servers.engine import OWN_ENVOY, find_engine
from authz.supervisor import ASK_S, choose_workers, count_cores
from tests.fakes import Signer, fake_provider, json_answer, jwks
from tests.servers.service import (
    DOORS,
    PROVIDED,
    RULES,
    RunningProcess,
    ask,
    check_request,
    require_fast,
    running_workers,
    told,
)
from tests.tls import Authority

pytestmark = pytest.mark.process

PROVIDED_KEYS = """
version: 1
providers:
  shop: {{issuer: "https://sso.example.com", audiences: [orders], keys: {{jwks_url: "{url}/jwks"}}}}
rules:
  - name: members
    hosts: [a.example]
    paths: ["/**"]
    tokens_from: shop
    require: any_token
"""


async def until(true: Callable[[], Awaitable[bool]], *, seconds: float = 15) -> None:
    async with asyncio.timeout(seconds):
        while not await true():
            await asyncio.sleep(0.05)


async def view(service: RunningProcess) -> dict[str, Any]:
    async with httpx.AsyncClient(trust_env=False) as client:
        found: dict[str, Any] = (await client.get(f"{service.http}/readyz")).json()
        return found


async def figure(service: RunningProcess, name: str) -> float:
    async with httpx.AsyncClient(trust_env=False) as client:
        text = (await client.get(f"{service.http}/metrics")).text
    values = [float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"{name}{{")]
    values += [float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"{name} ")]
    return sum(values)


async def ask_each(service: RunningProcess, times: int, **headers: str) -> set[str]:
    """Ask over many connections, which the system spreads over the workers."""
    said = set()
    for number in range(times):
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(service.address, options=options) as channel:
            said.add((await ask(channel, check_request(f"/x/{number}", **headers))).status.message or "allow")
    return said


@pytest.mark.parametrize("door", DOORS)
async def test_a_worker_that_ends_is_replaced_and_the_others_go_on(door: str, tmp_path: Path) -> None:
    async with running_workers(door, tmp_path, workers=2) as service:
        assert service.facts.get("envoy", "").count(".") == (2 if door == "fast" else 0)
        before = await view(service)
        assert [its["ready"] for its in before["workers"]] == [True, True]
        assert await ask_each(service, 20) == {"allow"}
        assert await figure(service, "authz_decisions_total") == 20
        assert await figure(service, "authz_workers_ready") == 2
        os.kill(before["workers"][0]["pid"], signal.SIGKILL)

        async def is_replaced() -> bool:
            now = await view(service)
            assert now["ready"], "one is enough"
            return now["workers"][0]["restarts"] == 1 and all(its["ready"] for its in now["workers"])

        # Whoever connects meanwhile comes to the one that is there: nobody is refused.
        while not await is_replaced():
            assert await ask_each(service, 3) == {"allow"}
        assert await figure(service, "authz_worker_restarts_total") == 1
        seen = len(await told(service, 20))
        assert await figure(service, "authz_decisions_total") == seen, "the counts of the lost worker stay"
        assert len(service.events("worker ended, starting another")) == 1


@pytest.mark.parametrize("door", DOORS)
async def test_a_worker_that_hangs_is_ended_and_replaced(door: str, tmp_path: Path) -> None:
    async with running_workers(door, tmp_path, workers=2) as service:
        before = (await view(service))["workers"]
        os.kill(before[1]["pid"], signal.SIGSTOP)
        asked_s = time.monotonic()
        now = await view(service)
        assert now["ready"], "one is enough"
        assert time.monotonic() - asked_s < ASK_S, "a probe does not wait for it"

        async def is_replaced() -> bool:
            now = (await view(service))["workers"]
            return bool(now[1]["restarts"] == 1 and now[1]["ready"] and now[1]["pid"] != before[1]["pid"])

        await until(is_replaced, seconds=40)
        assert len(service.events("a worker hangs, ending it")) == 1
        assert (await view(service))["workers"][0] == before[0], "the other one is left alone"
        assert await ask_each(service, 10) == {"allow"}


@pytest.mark.parametrize("door", DOORS)
async def test_workers_fetch_a_providers_keys_once_for_all(door: str, tmp_path: Path) -> None:
    signer, newer = Signer(), Signer("k2")
    async with fake_provider() as idp:
        idp.answers["/jwks"] = jwks(signer)
        rules = PROVIDED_KEYS.format(url=idp.url)
        async with running_workers(door, tmp_path, rules=rules, workers=3) as service:
            assert idp.count("/jwks") == 1
            now_s = int(time.time())
            claims = {"iss": "https://sso.example.com", "aud": "orders", "sub": "a", "iat": now_s, "exp": now_s + 300}
            bearer = f"Bearer {signer.sign(claims)}"
            assert await ask_each(service, 12, authorization=bearer) == {"allow"}
            idp.answers["/jwks"] = jwks(signer, newer)
            bearer = f"Bearer {newer.sign(claims)}"
            # Whichever worker is asked first fetches; the others see it a moment later, or say when to come again.
            await ask_each(service, 1, authorization=bearer)
            await asyncio.sleep(2 * LOOK_S)
            assert await ask_each(service, 12, authorization=bearer) == {"allow"}
            os.kill((await view(service))["workers"][0]["pid"], signal.SIGKILL)

            async def is_replaced() -> bool:
                its = (await view(service))["workers"][0]
                return bool(its["restarts"] == 1 and its["ready"])

            await until(is_replaced)
            assert await ask_each(service, 12, authorization=bearer) == {"allow"}
            assert idp.count("/jwks") == 2


@pytest.mark.parametrize("door", DOORS)
async def test_no_worker_starts_with_another_server_than_was_bound(door: str, tmp_path: Path) -> None:
    async with running_workers(door, tmp_path, workers=2) as service:
        before = (await view(service))["workers"]
        text = service.rules.read_text()
        service.rules.write_text(f"{text}\n  deadline_ms: 900\n")
        os.kill(before[0]["pid"], signal.SIGKILL)

        async def is_refused() -> bool:
            await asyncio.sleep(0.2)
            return "`server` has changed since the start" in service.log.getvalue()

        await until(is_refused)
        assert await ask_each(service, 6) == {"allow"}, "the others go on"
        service.rules.write_text(text)

        async def is_back() -> bool:
            return all(its["ready"] for its in (await view(service))["workers"])

        await until(is_back, seconds=30)


@pytest.mark.parametrize("door", DOORS)
async def test_sighup_reloads_every_worker_and_lines_stay_whole(door: str, tmp_path: Path) -> None:
    async with running_workers(door, tmp_path, workers=2) as service:
        text = service.rules.read_text()
        service.rules.write_text(text.replace("allow: anyone", "allow: nobody"))
        service.send(signal.SIGHUP)

        async def is_reloaded() -> bool:
            return bool((await view(service))["generation"] >= 2)

        await until(is_reloaded)
        assert await ask_each(service, 10) == {"nobody"}
        # Each line is larger than what a pipe takes at once.
        before = len(await told(service, 10))
        long = "é" * 250
        channels = [
            grpc.aio.insecure_channel(service.address, options=[("grpc.use_local_subchannel_pool", 1)])
            for _ in range(8)
        ]
        messages = [check_request(f"/{long}/{number}", x_request_id=long) for number in range(50)]
        await asyncio.gather(*(ask(channel, message) for channel in channels for message in messages))
        for channel in channels:
            await channel.close(None)
        lines = await told(service, before + 400)
        assert len(lines) == before + 400, "each is JSON, or its reader had failed"


@pytest.mark.parametrize("door", DOORS)
async def test_workers_end_with_their_supervisor_however_it_ends(door: str, tmp_path: Path) -> None:
    async with running_workers(door, tmp_path, workers=2) as service:
        (worker, other) = (await view(service))["workers"]
        service.send(signal.SIGKILL)
        await service.wait()

        async def is_gone() -> bool:
            return not any(Path(f"/proc/{its['pid']}").exists() for its in (worker, other))

        await until(is_gone)


async def test_the_runtime_folder_is_private_and_removed(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    file = tmp_path / "rules.yaml"
    server = 'door: fast\n  workers: 1\n  drain_s: 0\n  grpc: [{address: "127.0.0.1:0"}]\n  http: null'
    file.write_text(f"{RULES}\nserver:\n  {server}\n")
    require_fast()
    service = RunningProcess(file)
    try:
        await service.start({"TMPDIR": str(tmp_path / "tmp")})
        (folder,) = (tmp_path / "tmp").iterdir()
        assert folder.stat().st_mode & 0o777 == 0o700
        assert (folder / "0" / "admin").is_socket()
    finally:
        await service.stop()
    assert list((tmp_path / "tmp").iterdir()) == []


async def test_a_worker_that_cannot_start_ends_the_service(tmp_path: Path) -> None:
    require_fast()
    broken = tmp_path / "envoy"
    broken.write_text('#!/bin/sh\n[ "$1" = --version ] && exec "$REAL" --version\nexit 3\n')
    broken.chmod(0o755)
    file = tmp_path / "rules.yaml"
    file.write_text(f'{RULES}\nserver: {{door: fast, workers: 1, http: null, grpc: [{{address: "127.0.0.1:0"}}]}}\n')
    environ = os.environ | {OWN_ENVOY: str(broken), "REAL": find_engine({}).binary}
    command = [sys.executable, "-m", "authz", "serve", str(file)]
    done = await asyncio.to_thread(
        subprocess.run, command, env=environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert "worker 0 ended with code 3 before it was ready: the log says why" in done.stderr
    assert "Traceback" not in done.stderr


def test_another_envoy_must_be_of_the_same_minor_version(tmp_path: Path) -> None:
    require_fast()
    other = tmp_path / "envoy"
    other.write_text("#!/bin/sh\necho 'envoy  version: abc/1.2.3/Clean/RELEASE/BoringSSL'\n")
    other.chmod(0o755)
    with pytest.raises(ConfigError, match=r"is Envoy 1\.2\.3, and pyvoy's module is made for"):
        find_engine({OWN_ENVOY: str(other)})
    with pytest.raises(ConfigError, match="cannot start"):
        find_engine({OWN_ENVOY: str(tmp_path / "none")})
    own = find_engine({}).binary
    assert find_engine({OWN_ENVOY: own}).binary == own


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("sys.modules['pyvoy'] = None", "`pyvoy` is not installed: pip install 'authz[fast]'"),
        ("import find_libpython; find_libpython.candidate_paths = lambda: []", "apt-get install libpython3."),
    ],
)
def test_what_is_lacking_is_named(code: str, text: str, tmp_path: Path) -> None:
    require_fast()
    file = tmp_path / "rules.yaml"
    file.write_text(f"{RULES}\nserver: {{door: fast}}\n")
    program = f"import sys\n{code}\nfrom authz.cli import main\nmain(['serve', {str(file)!r}])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert text in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("server", "asked", "count"),
    [
        ("{}", None, count_cores()),
        ("{}", 3, 3),
        ("{workers: 5}", None, 5),
        ("{workers: 5}", 2, 2),
        ('{grpc: [{address: "unix:/x"}]}', None, 1),
        ('{grpc: [{address: "unix:/x"}]}', 1, 1),
        ('{grpc: [{address: "unix:/x"}]}', 2, 0),
    ],
)
def test_how_many_workers(server: str, asked: int | None, count: int, tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    part = server.replace("{", "{door: fast, ", 1)
    file.write_text(f"{RULES}\nserver: {part}\n")
    configuration = load(file, environ={})
    if count == 0:
        with pytest.raises(ConfigError, match="a unix socket leads to one process"):
            choose_workers(configuration, asked)
    else:
        assert choose_workers(configuration, asked) == count


@pytest.mark.parametrize("door", DOORS)
async def test_sigterm_to_several_workers_loses_no_check(door: str, tmp_path: Path) -> None:
    async with fake_provider() as idp:
        idp.answers["/introspect"] = json_answer({"active": False})
        idp.delay_s = 0.7
        rules = PROVIDED.format(url=idp.url)
        serving = running_workers(door, tmp_path, rules, server="drain_s: 20", environ={"S": "s"}, workers=2)
        async with serving as service, contextlib.AsyncExitStack() as stack:
            options = [("grpc.use_local_subchannel_pool", 1)]
            channels = [
                await stack.enter_async_context(grpc.aio.insecure_channel(service.address, options=options))
                for _ in range(6)
            ]
            checks = [ask(its, check_request(authorization=f"Bearer t{n}")) for n, its in enumerate(channels * 5)]
            under_way = [asyncio.create_task(its) for its in checks]
            async with asyncio.timeout(30):
                while idp.count("/introspect") < len(checks):
                    await asyncio.sleep(0.01)
            ended = asyncio.ensure_future(service.drain())
            answers = await asyncio.gather(*under_way)
            assert {its.status.message for its in answers} == {"token_inactive"}
            for channel in channels:
                await channel.close(None)
            assert await ended == 0


async def test_portable_workers_share_an_address_with_tls(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    cert, key = authority.issue("server")
    client_cert, client_key = authority.issue("client")
    server = f"tls: {{cert_file: {cert}, key_file: {key}, client_ca_file: {authority.file}}}"
    server = f'grpc: [{{address: "127.0.0.1:0", {server}}}]\n  http: "127.0.0.1:0"'
    async with running_workers("grpcio", tmp_path, server=server, workers=2) as service:
        for trusted in (True, False):
            mine = [its.read_bytes() if trusted else None for its in (client_key, client_cert)]
            credentials = grpc.ssl_channel_credentials(authority.file.read_bytes(), *mine)
            for _ in range(4):
                options = [("grpc.use_local_subchannel_pool", 1)]
                async with grpc.aio.secure_channel(service.address, credentials, options=options) as channel:
                    if trusted:
                        assert (await ask(channel)).status.code == 0
                        continue
                    with pytest.raises(grpc.aio.AioRpcError) as caught:
                        await ask(channel)
                    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        for number in ("0", "1"):
            assert any(number in its["http"].split("/")[-2] for its in service.events("listening"))
