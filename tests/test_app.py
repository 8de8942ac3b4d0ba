"""Life cycle: ready when loaded and tried, reloaded in one step, and never worse for a bad file."""

from __future__ import annotations

import asyncio
import io
import os
import signal
from collections.abc import Callable
from pathlib import Path

import grpc
import httpx
import jwt as pyjwt
import pytest

from authz.app import App
from authz.model import ConfigError
from authz.observe import Observer
from tests.fakes import HANG, Signer, fake_provider, http, jwks
from tests.servers.service import LOOPBACK, RULES, Running, ask, check_request, running


async def until(true: Callable[[], bool], *, seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.02)


def written(service: Running, rules: str, server: str = LOOPBACK) -> None:
    service.rules.write_text(f"{rules}\nserver:\n  {server}\n  \n")


async def get(url: str) -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False) as client:
        return await client.get(url)


async def answer(service: Running, path: str = "/x") -> str:
    async with grpc.aio.insecure_channel(service.address) as channel:
        response = await ask(channel, check_request(path))
    return response.status.message or "allow"


CLOSED = RULES.replace("allow: anyone", "allow: nobody")


async def test_a_changed_file_is_put_in_force_and_a_bad_one_is_not(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        assert await answer(service) == "allow"
        assert service.lines[-1]["generation"] == 1
        written(service, CLOSED)
        await until(lambda: service.app.view().generation == 2)
        assert await answer(service) == "nobody"
        assert service.lines[-1]["generation"] == 2
        written(service, RULES.replace("allow: anyone", "allow: everyone"))
        await until(lambda: "is none of" in service.app.view().last_reload_error)
        assert await answer(service) == "nobody"
        ready = await get(f"{service.http}/readyz")
        assert ready.status_code == 200
        assert "is none of" in ready.json()["last_reload_error"]
        assert b"authz_last_reload_successful 0.0" in (await get(f"{service.http}/metrics")).content
        assert "reload refused" in service.log.getvalue()
        written(service, RULES)
        await until(lambda: service.app.view().generation == 3)
        assert service.app.view().last_reload_error == ""
        assert await answer(service) == "allow"


async def test_the_server_part_is_not_reloadable(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        written(service, CLOSED, LOOPBACK + "\n  max_inflight: 7")
        await service.app.reload()
        assert "`server` has changed: restart" in service.app.view().last_reload_error
        assert await answer(service) == "allow"


async def test_the_symlink_swap_of_a_configmap(tmp_path: Path) -> None:
    mount = tmp_path / "mount"
    for name, rules in (("one", RULES), ("two", CLOSED)):
        (mount / name).mkdir(parents=True)
        (mount / name / "rules.yaml").write_text(f"{rules}\nserver:\n  {LOOPBACK}\n")
    (mount / "..data").symlink_to("one")
    (mount / "rules.yaml").symlink_to("..data/rules.yaml")
    app = App(mount / "rules.yaml", environ={}, observer=Observer(stream=io.StringIO()))
    await app.start()
    try:
        service = Running(app, [], io.StringIO(), mount / "rules.yaml")
        assert await answer(service) == "allow"
        await asyncio.sleep(0.3)
        (mount / "..new").symlink_to("two")
        (mount / "..new").rename(mount / "..data")
        await until(lambda: app.view().generation == 2)
        assert await answer(service) == "nobody"
    finally:
        await app.stop(at_once=True)


PROVIDED = """
version: 1
providers:
  shop:
    issuer: https://sso.example.com
    audiences: [a]
    keys: {{jwks_url: "{url}/jwks"}}
    http: {{timeout: {timeout}}}
rules:
  - {{name: shop, hosts: [a.example], paths: ["/shop"], tokens_from: shop, require: any_token}}
  - {{name: public, hosts: [a.example], paths: ["/x"], allow: anyone}}
"""


async def test_a_reload_keeps_what_was_proved_through_an_outage(tmp_path: Path) -> None:
    signer = Signer()
    async with fake_provider() as idp:
        idp.answers["/jwks"] = jwks(signer)
        rules = PROVIDED.format(url=idp.url, timeout="1s")
        async with running(tmp_path, rules) as service:
            claims = {"iss": "https://sso.example.com", "aud": "a", "exp": 4_000_000_000}
            token = signer.sign(claims)
            async with grpc.aio.insecure_channel(service.address) as channel:
                message = check_request("/shop", authorization=f"Bearer {token}")
                assert (await ask(channel, message)).status.code == 0
                idp.answers["/jwks"] = http(500)
                before = idp.count("/jwks")
                written(service, rules.replace("public", "open"))
                await service.app.reload()
                assert (await ask(channel, message)).status.code == 0
                assert service.lines[-1]["cache"] == "hit"
                assert service.lines[-1]["generation"] >= 2
            assert idp.count("/jwks") == before


async def test_a_dead_provider_does_not_keep_the_service_from_being_ready(tmp_path: Path) -> None:
    async with fake_provider() as idp:
        idp.answers["/jwks"] = HANG
        async with running(tmp_path, PROVIDED.format(url=idp.url, timeout="200ms")) as service:
            ready = (await get(f"{service.http}/readyz")).json()
            assert ready["ready"]
            assert ready["providers"][0]["name"] == "shop"
            assert not ready["providers"][0]["healthy"]
            assert await answer(service) == "allow"
            metrics = (await get(f"{service.http}/metrics")).text
            assert 'authz_provider_healthy{provider="shop"} 0.0' in metrics
            assert 'authz_decisions_total{decision="allow",reason="",rule="public"} 1.0' in metrics
            assert 'authz_check_seconds_bucket{decision="allow",le="1e-05"}' in metrics
            assert (await get(f"{service.http}/healthz")).text == "ok\n"


async def test_not_ready_before_the_policy_is_in_force(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        service.app.gate._snapshot = None
        assert (await get(f"{service.http}/readyz")).status_code == 503
        assert await answer(service) == "not_ready"


async def test_a_change_while_the_service_starts_is_not_missed(tmp_path: Path) -> None:
    async with fake_provider() as idp:
        idp.answers["/jwks"] = HANG
        file = tmp_path / "rules.yaml"
        rules = PROVIDED.format(url=idp.url, timeout="500ms") + f"server:\n  {LOOPBACK}\n"
        file.write_text(rules)
        app = App(file, environ={}, observer=Observer(stream=io.StringIO()))
        starting = asyncio.create_task(app.start())
        await until(lambda: idp.count("/jwks") > 0)
        # Whoever looks meanwhile sees what is waited for.
        assert not app.view().ready
        assert [(its.name, its.tried) for its in app.view().providers] == [("shop", False)]
        assert app.http is not None
        assert (await get(f"http://127.0.0.1:{app.http.port}/readyz")).status_code == 503
        file.write_text(rules.replace("allow: anyone", "allow: nobody"))
        await starting
        try:
            await until(lambda: app.view().generation == 2)
            assert app.gate.snapshot is not None
            assert app.gate.snapshot.policy.rules[1].access == "nobody"
        finally:
            await app.stop(at_once=True)


async def test_a_signal_during_the_start_ends_it(tmp_path: Path) -> None:
    async with fake_provider() as idp:
        idp.answers["/jwks"] = HANG
        file = tmp_path / "rules.yaml"
        file.write_text(PROVIDED.format(url=idp.url, timeout="30s") + f"server:\n  {LOOPBACK}\n")
        app = App(file, environ={}, observer=Observer(stream=io.StringIO()))
        running_app = asyncio.create_task(app.run())
        await until(lambda: idp.count("/jwks") > 0)
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(running_app, 3)
        assert app.gate.snapshot is None


SECRET = """
version: 1
providers:
  shop:
    issuer: https://sso.example.com
    audiences: [a]
    keys: {secret: "${file:mount/key}"}
rules:
  - {name: shop, hosts: [a.example], paths: ["/x"], tokens_from: shop, require: any_token}
"""


async def test_a_renewed_secret_is_put_in_force(tmp_path: Path) -> None:
    mount = tmp_path / "mount"
    for name, secret in (("one", "1" * 32), ("two", "2" * 32)):
        (mount / name).mkdir(parents=True)
        (mount / name / "key").write_text(secret)
    (mount / "..data").symlink_to("one")
    (mount / "key").symlink_to("..data/key")
    claims = {"iss": "https://sso.example.com", "aud": "a", "exp": 4_000_000_000}
    async with running(tmp_path, SECRET) as service, grpc.aio.insecure_channel(service.address) as channel:

        async def said(secret: str) -> str:
            token = pyjwt.encode(claims, secret, algorithm="HS256")
            response = await ask(channel, check_request("/x", authorization=f"Bearer {token}"))
            return response.status.message or "allow"

        assert [await said("1" * 32), await said("2" * 32)] == ["allow", "jwt_signature"]
        (mount / "..new").symlink_to("two")
        (mount / "..new").rename(mount / "..data")
        await until(lambda: service.app.view().generation == 2)
        assert [await said("1" * 32), await said("2" * 32)] == ["jwt_signature", "allow"]


async def test_a_bad_file_is_mended_where_it_is_bad(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        written(service, SECRET)
        await until(lambda: "cannot read" in service.app.view().last_reload_error)
        assert await answer(service) == "allow"
        # The rules file itself stays as it is.
        (tmp_path / "mount").mkdir()
        (tmp_path / "mount/key").write_text("1" * 32)
        await until(lambda: service.app.view().generation == 2, seconds=15)
        assert await answer(service) == "no_credential"


async def test_a_bug_of_ours_in_a_reload_shows_and_changes_nothing(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        service.app._path = None  # type: ignore[assignment]  # what must never happen
        with pytest.raises(AttributeError):
            await service.app.reload()
        assert "a reason that is ours" in service.app.view().last_reload_error
        assert await answer(service) == "allow"
        service.app._path = service.rules
        written(service, CLOSED)
        await until(lambda: service.app.view().generation == 2)


async def test_not_ready_while_draining(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        assert (await get(f"{service.http}/readyz")).status_code == 200
        async with grpc.aio.insecure_channel(service.address) as channel:
            stopping = asyncio.create_task(service.app.stop())
            await until(lambda: not service.app.view().ready)
            assert (await get(f"{service.http}/readyz")).status_code == 503
            assert (await ask(channel)).status.code == 0, "checks are answered on"
            await stopping


async def test_sighup_reloads(tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text(f"{RULES}\nserver:\n  {LOOPBACK}\n  drain_s: 0\n")
    app = App(file, environ={}, observer=Observer(stream=io.StringIO()))
    task = asyncio.create_task(app.run())
    await until(lambda: app.view().ready)
    os.kill(os.getpid(), signal.SIGHUP)
    await until(lambda: app.view().generation >= 2)
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(task, 10)


@pytest.mark.parametrize("text", ["", "version: 1\nrules: []\n"])
async def test_a_bad_file_stops_the_start(text: str, tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(text)
    with pytest.raises(ConfigError):
        App(tmp_path / "rules.yaml", environ={}, observer=Observer(stream=io.StringIO()))


async def test_lines_for_denies_only(tmp_path: Path) -> None:
    async with running(tmp_path, server="log_decisions: denies") as service:
        assert await answer(service) == "allow"
        assert service.lines == []
        async with grpc.aio.insecure_channel(service.address) as channel:
            await ask(channel, check_request("/x", "other.example"))
        assert [line["reason"] for line in service.lines] == ["no_rule"]


async def test_checks_go_on_while_a_large_file_is_compiled(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        rules = "".join(
            f"  - {{name: r{n}, hosts: [h.example], paths: [/p{n}], allow: anyone}}\n" for n in range(3_000)
        )
        written(service, RULES + rules)
        answered = 0
        reloads = [asyncio.create_task(service.app.reload()) for _ in range(2)]
        async with grpc.aio.insecure_channel(service.address) as channel:
            while not all(its.done() for its in reloads):
                assert (await ask(channel)).status.code == 0
                answered += 1
        assert answered > 5, "a reload that blocks lets one check pass each time"
        assert service.app.view().generation >= 2
