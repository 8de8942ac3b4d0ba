"""A provider's last good keys on disk, for a start with the provider down.

Whoever can write the file decides whose tokens count, so it is read only if it is ours and nobody else may write it.
It is bound to the issuer and to where the keys came from.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tempfile
from pathlib import Path
from typing import Final

from authz.core.jwk import KeySet, parse_key_set
from authz.core.strictjson import parse_object
from authz.model import KeySettings, Provider, ProviderError, Reason, Rejected

MAX_BYTES: Final = 32 * 1024 * 1024


class KeyFile:
    """One provider's file."""

    def __init__(self, provider: Provider, settings: KeySettings, folder: str) -> None:
        self._source = f"{provider.issuer} {settings.jwks_url or settings.discovery}"
        self._max_age_s = settings.max_stale_s
        name = hashlib.sha256(f"{provider.name} {self._source}".encode()).hexdigest()[:32]
        self.path = Path(folder) / f"{name}.json"

    def read(self, *, now_s: float) -> tuple[KeySet, float, bytes] | None:
        """Return the keys, their age in seconds and their document, or None where there is no file or it is too old.

        Raises:
            ValueError: for a file that is not to be trusted or not to be understood; with words for the operator.

        """
        try:
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())
                if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                    raise ValueError(f"`{self.path}` is not ours alone to write: remove it")
                raw = file.read(MAX_BYTES)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ValueError(f"cannot read `{self.path}`: {(error.strerror or 'unreadable').lower()}") from None
        try:
            document = parse_object(raw, reason=Reason.KEYS_UNAVAILABLE)
            fetched_s, jwks = document.get("fetched_s"), json.dumps(document.get("jwks")).encode()
            keys = parse_key_set(jwks)
        except (Rejected, ProviderError):
            raise ValueError(f"`{self.path}` is damaged: remove it") from None
        if document.get("source") != self._source or not isinstance(fetched_s, int | float):
            raise ValueError(f"`{self.path}` is of another provider: remove it")
        age_s = now_s - fetched_s
        return (keys, age_s, jwks) if 0 <= age_s <= self._max_age_s else None

    def write(self, raw: bytes, *, now_s: float) -> None:
        """Put a JWKS document in the file's place, in one step, readable by us only.

        Raises:
            OSError: as the system says.

        """
        text = json.dumps({"source": self._source, "fetched_s": now_s, "jwks": json.loads(raw)})
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        replace_file(self.path, text)


def replace_file(path: Path, text: str) -> None:
    """Put a text in a file's place in one step, readable by us only; nothing is left behind where that fails.

    Raises:
        OSError: as the system says.

    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).replace(path)
    except OSError:
        Path(name).unlink(missing_ok=True)
        raise
