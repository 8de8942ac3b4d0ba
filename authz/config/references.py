"""Put in what stands outside the file: ``${env:NAME}`` for any text, ``${file:/path}`` where a secret or keys stand.

A reference is a whole value, never a part of one. What it brings for a secret is wrapped at once, so that no message
can show it (invariant NO-RAW-TOKENS). A key without a value is an error here: read as "nothing", it could drop a
requirement.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from authz.config.document import Loc
from authz.config.problems import Problems, show
from authz.model import Secret

MAX_FILE_BYTES: Final = 1_048_576

SECRETS: Final = frozenset({"client_secret", "private_key", "secret"})
_FROM_FILES: Final = SECRETS | {"jwks", "pem"}
_PROVIDERS_PART: Final = 4
"""How deep these stand: ``providers``, a name, ``keys`` or ``introspection``, and they. Elsewhere it is only a name."""
_MAY_BE_NULL: Final[frozenset[Loc]] = frozenset({("server", "http")})
_REFERENCE: Final = re.compile(r"\$\{(env|file):([^${}]+)\}")


UNREADABLE: Final = b""
"""Stands for the content of a file that cannot be read."""


def digest(raw: bytes) -> bytes:
    """Return what changes when a file's content does."""
    return hashlib.sha256(raw).digest()


class References:
    """Resolves one file's references, and notes in ``files`` those they named, with the digest of what was read."""

    def __init__(
        self, *, folder: Path, environ: Mapping[str, str], problems: Problems, files: dict[Path, bytes]
    ) -> None:
        self._folder = folder
        self._environ = environ
        self._problems = problems
        self._files = files
        self.unresolved: set[Loc] = set()
        """Where something is wrong: what stands there now is None, and means nothing."""

    def _refuse(self, loc: Loc, message: str) -> None:
        self.unresolved.add(loc)
        self._problems.add(loc, message)

    def resolve(self, value: Any, loc: Loc = ()) -> Any:
        """Return the value with every reference replaced; what cannot be is a problem, and None."""
        special = loc[-1] if len(loc) == _PROVIDERS_PART and loc[0] == "providers" else ""
        if special in SECRETS and value is not None:
            return self._secret(value, loc)
        if isinstance(value, dict):
            return {key: self.resolve(item, (*loc, key)) for key, item in value.items()}
        if isinstance(value, list):
            return [self.resolve(item, (*loc, index)) for index, item in enumerate(value)]
        if value is None and loc not in _MAY_BE_NULL:
            self._refuse(loc, "has no value: write one, or remove the key")
        elif isinstance(value, str) and "${" in value:
            return self._text(value, loc, files=special in _FROM_FILES)
        return value

    def _secret(self, value: object, loc: Loc) -> Secret | None:
        if not isinstance(value, str) or not _REFERENCE.fullmatch(value):
            self._refuse(loc, "a secret in the file itself: write `${env:NAME}` or `${file:/path}` instead")
            return None
        text = self._text(value, loc, files=True)
        return None if text is None else Secret(text)

    def _text(self, value: str, loc: Loc, *, files: bool) -> str | None:
        found = _REFERENCE.fullmatch(value)
        if found is None:
            if _REFERENCE.search(value) is None:
                return value
            self._refuse(loc, f"{show(value)} has a reference inside a longer text: it must be the whole value")
        elif found[1] == "env":
            return self._from_environment(found[2], loc)
        elif files:
            return self._from_file(found[2], loc)
        else:
            self._refuse(loc, "`${file:…}` is for secrets and keys: write the value, or `${env:NAME}`")
        return None

    def _from_environment(self, name: str, loc: Loc) -> str | None:
        value = self._environ.get(name)
        if not value:
            self._refuse(loc, f"environment variable `{name}` is not set, or empty: set it before the start")
            return None
        if not _is_utf8(value):
            self._refuse(loc, f"environment variable `{name}` is not utf-8: write it as text")
            return None
        return value

    def _from_file(self, name: str, loc: Loc) -> str | None:
        path = self._folder / name
        self._files[path] = UNREADABLE
        try:
            with path.open("rb") as file:
                raw = file.read(MAX_FILE_BYTES + 1)
            self._files[path] = digest(raw)
            text = raw.decode("utf-8").removesuffix("\n").removesuffix("\r")
        except OSError as error:
            self._refuse(loc, f"cannot read {show(str(path))}: {(error.strerror or 'unreadable').lower()}")
            return None
        except UnicodeDecodeError:
            self._refuse(loc, f"{show(str(path))} is not utf-8: write it as text")
            return None
        if not text or len(raw) > MAX_FILE_BYTES:
            self._refuse(loc, f"{show(str(path))} is empty, or larger than {MAX_FILE_BYTES} bytes")
            return None
        return text


def _is_utf8(value: str) -> bool:
    """Say whether an environment variable's bytes were UTF-8; what was not stands in it as lone surrogates."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
