"""The printed configurations call this service as it listens, with TLS where it speaks TLS, and wait longer than it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from authz.cli import main
from authz.envoy_config import parse_address, render_duration
from authz.proxy_tls import FILL_IN, FILL_IN_NAME, read_server_name
from tests.tls import Authority

PUBLIC = "version: 1\nrules: [{name: public, hosts: everywhere, paths: [/], allow: anyone}]\n"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments, catch_exceptions=False)


def rules(folder: Path, server: str) -> str:
    file = folder / "rules.yaml"
    file.write_text(f"{PUBLIC}server: {{{server}}}\n")
    return str(file)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def tls(authority: Authority, tmp_path: Path) -> str:
    cert, key = authority.issue("server")
    return rules(tmp_path, f'grpc: [{{address: "0.0.0.0:9001", tls: {{cert_file: {cert}, key_file: {key}}}}}]')


@pytest.fixture
def mutual(authority: Authority, tmp_path: Path) -> str:
    cert, key = authority.issue("server")
    files = f"cert_file: {cert}, key_file: {key}, client_ca_file: {authority.file}"
    return rules(tmp_path, f'deadline_ms: 3000, grpc: [{{address: "0.0.0.0:9001", tls: {{{files}}}}}]')


def clusters(*arguments: str) -> dict[str, Any]:
    document = yaml.safe_load(run("envoy-config", *arguments).stdout)
    return {its["name"]: its for its in document["static_resources"]["clusters"]}


def address_of(cluster: dict[str, Any]) -> dict[str, Any]:
    (endpoint,) = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
    found: dict[str, Any] = endpoint["endpoint"]["address"]
    return found


def test_configurations_for_envoy_and_istio(tmp_path: Path) -> None:
    file = rules(tmp_path, 'grpc: [{address: "0.0.0.0:9001"}], deadline_ms: 2000')
    found = clusters(file)
    assert address_of(found["authz"]) == {"socket_address": {"address": "127.0.0.1", "port_value": 9001}}
    assert "transport_socket" not in found["authz"]
    document = yaml.safe_load(run("envoy-config", file).stdout)
    (listener,) = document["static_resources"]["listeners"]
    (authz, _) = listener["filter_chains"][0]["filters"][0]["typed_config"]["http_filters"]
    assert authz["typed_config"]["grpc_service"]["timeout"] == "2.25s"
    mesh, policy = yaml.safe_load_all(run("istio-config", file).stdout)
    (provider,) = mesh["meshConfig"]["extensionProviders"]
    assert provider["envoyExtAuthzGrpc"]["port"] == 9001
    assert provider["envoyExtAuthzGrpc"]["failOpen"] is False
    assert provider["envoyExtAuthzGrpc"]["timeout"] == "2.25s"
    assert policy["spec"] == {"action": "CUSTOM", "provider": {"name": provider["name"]}, "rules": [{}]}
    assert FILL_IN not in run("envoy-config", file).stdout + run("istio-config", file).stdout


@pytest.mark.parametrize(
    ("milliseconds", "text"), [(250, "0.25s"), (1_000, "1s"), (1_250, "1.25s"), (60_251, "60.251s")]
)
def test_durations_are_exact(milliseconds: int, text: str) -> None:
    assert render_duration(milliseconds) == text


def test_envoy_calls_over_tls_and_believes_one_name_only(tls: str) -> None:
    socket = clusters(tls)["authz"]["transport_socket"]["typed_config"]
    assert socket["@type"].endswith("tls.v3.UpstreamTlsContext")
    assert socket["sni"] == "localhost"
    context = socket["common_tls_context"]
    assert context["alpn_protocols"] == ["h2"]
    assert context["validation_context"] == {
        "trusted_ca": {"filename": f"{FILL_IN}/ca.pem"},
        "match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"exact": "localhost"}}],
    }
    assert "tls_certificates" not in context
    assert "transport_socket" not in clusters(tls)["upstream"]
    printed = run("envoy-config", tls).stdout
    assert f"# FILL IN what starts with `{FILL_IN}`" in printed
    assert "FILL" not in run("envoy-config", tls, "--ca-file", "/ca.pem").stdout


def test_envoy_shows_a_certificate_where_the_service_asks_for_one(mutual: str) -> None:
    def pair(*options: str) -> tuple[str, str]:
        context = clusters(mutual, *options)["authz"]["transport_socket"]["typed_config"]["common_tls_context"]
        (found,) = context["tls_certificates"]
        return found["certificate_chain"]["filename"], found["private_key"]["filename"]

    assert pair() == (f"{FILL_IN}/client.pem", f"{FILL_IN}/client.key")
    assert pair("--client-cert", "/c.pem", "--client-key", "/c.key") == ("/c.pem", "/c.key")


def test_an_address_is_matched_as_one_and_is_no_server_name(tls: str) -> None:
    socket = clusters(tls, "--server-name", "192.0.2.1")["authz"]["transport_socket"]["typed_config"]
    (matched,) = socket["common_tls_context"]["validation_context"]["match_typed_subject_alt_names"]
    assert matched == {"san_type": "IP_ADDRESS", "matcher": {"exact": "192.0.2.1"}}
    assert "sni" not in socket


def test_the_mesh_calls_over_tls_too(tls: str) -> None:
    _, __, rule = yaml.safe_load_all(run("istio-config", tls, "--namespace", "shop").stdout)
    assert (rule["kind"], rule["metadata"]["namespace"]) == ("DestinationRule", "shop")
    assert rule["spec"]["host"] == "authz.authz.svc.cluster.local"
    (port,) = rule["spec"]["trafficPolicy"]["portLevelSettings"]
    assert port["port"] == {"number": 9001}
    assert port["tls"] == {
        "mode": "SIMPLE",
        "caCertificates": f"{FILL_IN}/ca.pem",
        "subjectAltNames": ["localhost"],
        "sni": "localhost",
    }


def test_the_mesh_shows_a_certificate_where_the_service_asks_for_one(mutual: str) -> None:
    options = (
        "--client-cert",
        "/c.pem",
        "--client-key",
        "/c.key",
        "--ca-file",
        "/ca.pem",
        "--server-name",
        "a.example",
    )
    printed = run("istio-config", mutual, *options).stdout
    mesh, _, rule = yaml.safe_load_all(printed)
    (port,) = rule["spec"]["trafficPolicy"]["portLevelSettings"]
    assert port["tls"] == {
        "mode": "MUTUAL",
        "caCertificates": "/ca.pem",
        "subjectAltNames": ["a.example"],
        "sni": "a.example",
        "clientCertificate": "/c.pem",
        "privateKey": "/c.key",
    }
    assert mesh["meshConfig"]["extensionProviders"][0]["envoyExtAuthzGrpc"]["timeout"] == "3.25s"
    assert "FILL" not in printed


@pytest.mark.parametrize("command", ["envoy-config", "istio-config"])
def test_options_that_would_do_nothing_are_usage_errors(command: str, tls: str, tmp_path: Path) -> None:
    done = run(command, tls, "--client-key", "/c.key")
    assert done.exit_code == 2
    assert "asks for no client certificate" in done.stderr
    (tmp_path / "plain").mkdir()
    bare = rules(tmp_path / "plain", 'grpc: [{address: "0.0.0.0:9001"}]')
    done = run(command, bare, "--ca-file", "/ca.pem")
    assert done.exit_code == 2
    assert "has no `tls`: leave out --ca-file" in done.stderr


def test_the_name_is_the_certificates(authority: Authority, tmp_path: Path) -> None:
    cert, key = authority.issue("server")
    assert read_server_name(str(cert)) == "localhost"
    assert read_server_name(str(authority.file)) == "localhost"
    assert read_server_name(str(key)) is None
    assert read_server_name(str(tmp_path / "missing.pem")) is None
    assert FILL_IN_NAME.endswith(".invalid")


def test_a_mesh_needs_an_address_that_its_proxies_can_reach(tmp_path: Path) -> None:
    listeners = ['{address: "unix:/run/authz.sock"}', '{address: "0.0.0.0:9009"}']
    for grpc, code in ((listeners, 0), (listeners[:1], 2)):
        done = run("istio-config", rules(tmp_path, f"grpc: [{', '.join(grpc)}]"))
        assert done.exit_code == code
        assert ("port: 9009" if code == 0 else "add a `host:port`") in done.output


@pytest.mark.parametrize("command", ["envoy-config", "istio-config"])
def test_a_port_that_is_chosen_at_the_start_cannot_be_called(command: str, tmp_path: Path) -> None:
    done = run(command, rules(tmp_path, 'grpc: [{address: "127.0.0.1:0"}]'))
    assert done.exit_code == 2
    assert "write the port that the proxy is to call" in done.stderr


def test_what_envoy_listens_on_is_not_rewritten(tmp_path: Path) -> None:
    file = rules(tmp_path, 'grpc: [{address: "[::]:9001"}]')
    options = ("--listen", "0.0.0.0:80", "--upstream", "shop.internal:8080")
    document = yaml.safe_load(run("envoy-config", file, *options).stdout)
    (listener,) = document["static_resources"]["listeners"]
    assert listener["address"] == {"socket_address": {"address": "0.0.0.0", "port_value": 80}}
    found = clusters(file, *options)
    assert address_of(found["authz"])["socket_address"]["address"] == "::1"
    assert address_of(found["upstream"])["socket_address"] == {"address": "shop.internal", "port_value": 8080}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("127.0.0.1:1", "127.0.0.1:1"),
        ("[::1]:65535", "[::1]:65535"),
        ("Shop.Internal:80", "shop.internal:80"),
        ("unix:/run/shop.sock", "unix:/run/shop.sock"),
    ],
)
def test_addresses(text: str, shown: str) -> None:
    assert parse_address(text) == shown


@pytest.mark.parametrize(
    "text",
    ["nonsense", "", ":", ":80", "a:", "a:b", "a:0", "a:65536", "a:-1", "::1:80", "[::1]", "[::1", "a b:1", "http://a:1",
     "a:1/x", "a:1\n", "unix:x", "unix:/\n", "a:٣", "a:1:2"],
)  # fmt: skip
def test_what_is_no_address_is_a_usage_error(text: str, tmp_path: Path) -> None:
    file = rules(tmp_path, 'grpc: [{address: "0.0.0.0:9001"}]')
    for option in ("--upstream", "--listen"):
        done = run("envoy-config", file, option, text)
        assert done.exit_code == 2
        assert "write HOST:PORT" in done.stderr
    with pytest.raises(ValueError, match="is no address"):
        parse_address(text)


@pytest.mark.parametrize("text", ["localhost:80", "a.example:80"])
def test_a_name_is_nothing_to_listen_on(text: str) -> None:
    assert parse_address(text) == text
    with pytest.raises(ValueError, match="write an ip address"):
        parse_address(text, listen=True)
