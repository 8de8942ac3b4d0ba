"""Read the Dockerfile, and do its builder's steps in a folder instead of a container."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.manifests.render import ROOT

FILE: Final = ROOT / "Dockerfile"
MOVED: Final = ("/opt", "/etc/authz", "/src")
"""Absolute paths of the image that a replay has below its own folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One `FROM` and what follows it: words and the rest of each instruction."""

    base: str
    name: str
    steps: tuple[tuple[str, str], ...]

    def all(self, word: str) -> list[str]:
        """Return what stands behind each instruction of that kind."""
        return [rest for found, rest in self.steps if found == word]


def read_stages(text: str) -> list[Stage]:
    """Return the stages. Comments are dropped and continued lines joined, as Docker does."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    stages: list[Stage] = []
    for line in filter(None, map(str.strip, joined.splitlines())):
        word, _, rest = line.partition(" ")
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            stages.append(Stage(base=base, name=name, steps=()))
        elif stages:
            last = stages[-1]
            stages[-1] = Stage(base=last.base, name=last.name, steps=(*last.steps, (word, rest.strip())))
    return stages


def read_environment(stage: Stage) -> dict[str, str]:
    """Return what `ENV` sets."""
    return dict(re.findall(r"(\w+)=(\S+)", " ".join(stage.all("ENV"))))


def read_command(stage: Stage) -> list[str]:
    """Return what a container starts."""
    (entrypoint,), (command,) = stage.all("ENTRYPOINT"), stage.all("CMD")
    return [*json.loads(entrypoint), *json.loads(command)]


def choose_python() -> Path:
    """Return a Python of this one's version, if there is one that any user may start and that makes environments."""
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    own = Path(sys.base_prefix, "bin", name)
    for candidate in (own, Path("/usr/bin", name)):
        if is_for_everybody(candidate) and _runs(candidate, "-c", "import ensurepip, venv"):
            return candidate
    return own


def is_for_everybody(program: Path) -> bool:
    """Whether any user may start it."""
    found = program.resolve()
    return found.exists() and all(its.stat().st_mode & 0o001 for its in (found, *found.parents))


def _runs(*command: str | Path) -> bool:
    return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0


class Replay:
    """A folder that stands for the image's root. ``python`` of the base image is this machine's."""

    def __init__(self, root: Path) -> None:
        """Put the base image's Python on the path under its name."""
        self.root = root
        self.python = choose_python()
        self.folder = root
        programs = root / "base"
        programs.mkdir()
        (programs / "python").write_text(f'#!/bin/sh\nexec {self.python} "$@"\n')
        (programs / "python").chmod(0o755)

    def move(self, text: str) -> str:
        """Return a text with the image's paths below our folder."""
        for path in MOVED:
            text = re.sub(rf"(?<![\w/.-]){path}(?![\w-])", f"{self.root}{path}", text)
        return text

    def run(self, stage: Stage) -> None:
        """Do a stage's steps."""
        for word, rest in stage.steps:
            match word:
                case "WORKDIR":
                    self.folder = Path(self.move(rest))
                    self.folder.mkdir(parents=True, exist_ok=True)
                case "COPY":
                    *sources, target = rest.split()
                    self._copy(sources, target)
                case "RUN":
                    self._do(self.move(rest))
                case _:
                    raise ValueError(f"a step that this cannot do: {word} {rest}")

    def _copy(self, sources: Sequence[str], target: str) -> None:
        place = self.folder / self.move(target)
        for name in sources:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, place, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
                continue
            file = place / source.name if target.endswith("/") else place
            file.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, file)

    def _do(self, command: str) -> None:
        path = f"{self.root / 'base'}:/usr/bin:/bin"
        kept = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_", "HTTP", "http"))}
        environ: Mapping[str, str] = {**kept, "PATH": path, "HOME": str(self.root)}
        done = subprocess.run(
            ["/bin/sh", "-c", command],
            cwd=self.folder, env=environ, capture_output=True, text=True, timeout=900, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            raise RuntimeError(
                f"`{command}` ended with {done.returncode}:\n{done.stdout[-2_000:]}{done.stderr[-2_000:]}"
            )
