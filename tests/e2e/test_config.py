"""The configurations that are printed are ones that the real Envoy takes, and by which it reaches this service."""

from __future__ import annotations

import asyncio
import subprocess
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import yaml
from click.testing import CliRunner

from authz.cli import main
from authz.demo.proxy import EnvoyProcess
from authz.envoy_config import render_envoy_config
from authz.proxy_tls import ProxyTls
from tests.parts import require_envoy
from tests.servers.service import running
from tests.tls import Authority

pytestmark = pytest.mark.e2e

EXAMPLE = Path(__file__).parent.parent.parent / "examples/quickstart.yaml"


@pytest.fixture
def envoy() -> str:
    return require_envoy()


def validated(envoy: str, printed: str, folder: Path) -> subprocess.CompletedProcess[str]:
    config = folder / "envoy.yaml"
    config.write_text(printed)
    arguments = [envoy, "--mode", "validate", "-c", str(config)]
    return subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)


def printed_for(server: str, folder: Path, *options: str) -> str:
    rules = folder / "rules.yaml"
    rules.write_text(EXAMPLE.read_text() + server)
    return CliRunner().invoke(main, ["envoy-config", str(rules), *options], catch_exceptions=False).stdout


@pytest.mark.parametrize("server", ["", 'server: {grpc: [{address: "unix:/run/authz.sock"}]}\n'])
def test_the_printed_configuration_is_valid(server: str, envoy: str, tmp_path: Path) -> None:
    printed = printed_for(server, tmp_path, "--upstream", "shop.internal:80", "--listen", "[::]:10000")
    done = validated(envoy, printed, tmp_path)
    assert done.returncode == 0, done.stderr
    (listener,) = yaml.safe_load(printed)["static_resources"]["listeners"]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    (authz, _) = manager["http_filters"]
    assert authz["typed_config"]["failure_mode_allow"] is False
    assert "allowed_headers" not in authz["typed_config"]
    assert "clear_route_cache" not in authz["typed_config"]


@pytest.mark.parametrize("address", ["0.0.0.0:9001", "unix:/run/authz.sock"])
@pytest.mark.parametrize("name", ["localhost", "127.0.0.1"])
def test_the_printed_configuration_with_tls_is_valid(address: str, name: str, envoy: str, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    cert, key = authority.issue("server")
    files = f"cert_file: {cert}, key_file: {key}"
    plain = f'server: {{grpc: [{{address: "{address}", tls: {{{files}}}}}]}}\n'
    options = ("--ca-file", str(authority.file), "--server-name", name)
    done = validated(envoy, printed_for(plain, tmp_path, *options), tmp_path)
    assert done.returncode == 0, done.stderr
    mutual = plain.replace(files, f"{files}, client_ca_file: {authority.file}")
    pair = ("--client-cert", str(cert), "--client-key", str(key))
    done = validated(envoy, printed_for(mutual, tmp_path, *options, *pair), tmp_path)
    assert done.returncode == 0, done.stderr
    # What is left to be filled in does not start by mistake.
    unfilled = validated(envoy, printed_for(mutual, tmp_path), tmp_path)
    assert unfilled.returncode != 0
    assert "/FILL-IN/" in unfilled.stderr


async def test_envoy_reaches_the_service_over_mutual_tls_and_no_other(envoy: str, tmp_path: Path) -> None:
    authority, stranger = Authority(tmp_path), Authority(tmp_path, "stranger")
    cert, key = authority.issue("server")
    client_cert, client_key = authority.issue("client")
    files = f"cert_file: {cert}, key_file: {key}, client_ca_file: {authority.file}"
    right = ProxyTls(
        server_name="localhost",
        ca_file=str(authority.file),
        client_cert_file=str(client_cert),
        client_key_file=str(client_key),
    )
    wrong = {
        "another authority": replace(right, ca_file=str(stranger.file)),
        "another name": replace(right, server_name="other.example"),
        "no certificate": replace(right, client_cert_file=None, client_key_file=None),
        "no tls": None,
    }

    async def status(tls: ProxyTls | None) -> int:
        text = render_envoy_config(
            authz_address=service.address,
            authz_tls=tls,
            upstream_address="127.0.0.1:1",
            listen_address="127.0.0.1:0",
            timeout_ms=2_000,
            admin_address="127.0.0.1:0",
        )
        process = EnvoyProcess(text, tmp_path)
        try:
            await process.start()
            async with httpx.AsyncClient(trust_env=False) as http:
                return (await http.get(f"http://127.0.0.1:{process.ports['http']}/nowhere")).status_code
        finally:
            await process.stop()
            for name in ("envoy.admin", "envoy.log"):
                await asyncio.to_thread((tmp_path / name).unlink, missing_ok=True)

    tls = f'grpc: [{{address: "127.0.0.1:0", tls: {{{files}}}}}]\n  http: null'
    async with running(tmp_path, server=tls) as service:
        # A deny of ours tells that we were asked; 503 is what Envoy says alone.
        assert await status(right) == 403
        for what, other in wrong.items():
            assert await status(other) == 503, what
