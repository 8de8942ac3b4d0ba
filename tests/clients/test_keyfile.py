"""Keys on disk decide whose tokens count: a file that is not ours, not whole or not this provider's is not read."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from authz.clients.keyfile import KeyFile
from authz.core.jwk import KeySet
from authz.model import Expectation, KeySettings, Provider
from tests.fakes import Signer

NOW_S = 1_800_000_000.0
SIGNER = Signer()
JWKS = {"keys": [SIGNER.jwk()]}


@pytest.fixture
def file(tmp_path: Path) -> KeyFile:
    settings = KeySettings(jwks_url="https://sso.example.com/jwks", max_stale_s=100.0)
    expectation = Expectation(issuer="https://sso.example.com", audiences=None, algorithms=frozenset({"ES256"}))
    provider = Provider(name="shop", issuer="https://sso.example.com", expectation=expectation, keys=settings)
    return KeyFile(provider, settings, str(tmp_path / "keys"))


def put(file: KeyFile, raw: bytes) -> None:
    file.path.parent.mkdir(exist_ok=True)
    file.path.write_bytes(raw)
    file.path.chmod(0o600)


def good(file: KeyFile, **changes: Any) -> dict[str, Any]:
    file.write(json.dumps(JWKS).encode(), now_s=NOW_S)
    document: dict[str, Any] = json.loads(file.path.read_text()) | changes
    return document


def read(file: KeyFile, *, now_s: float = NOW_S) -> tuple[KeySet, float, bytes] | str | None:
    """Return what the file says, or the words it is refused with: nothing else may escape."""
    try:
        return file.read(now_s=now_s)
    except ValueError as error:
        return str(error)


def test_what_is_written_is_read_again(file: KeyFile) -> None:
    assert file.read(now_s=NOW_S) is None
    file.write(json.dumps(JWKS).encode(), now_s=NOW_S)
    found = file.read(now_s=NOW_S + 7)
    assert found is not None
    assert ([key.kid for key in found[0].keys], found[1], json.loads(found[2])) == ([SIGNER.kid], 7, JWKS)
    assert file.path.stat().st_mode & 0o777 == 0o600
    assert list(file.path.parent.iterdir()) == [file.path]


@pytest.mark.parametrize(("age_s", "is_read"), [(-0.1, False), (0, True), (99.9, True), (100, True), (100.1, False)])
def test_keys_of_the_future_and_too_old_ones_are_none(age_s: float, *, is_read: bool, file: KeyFile) -> None:
    good(file)
    assert (file.read(now_s=NOW_S + age_s) is not None) is is_read


@pytest.mark.parametrize(
    ("mode", "is_read"), [(0o600, True), (0o644, True), (0o664, False), (0o620, False), (0o602, False), (0o666, False)]
)
def test_a_file_that_others_may_write_is_not_read(mode: int, *, is_read: bool, file: KeyFile) -> None:
    good(file)
    file.path.chmod(mode)
    found = read(file)
    assert (found == f"`{file.path}` is not ours alone to write: remove it") is not is_read


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_somebody_else_is_not_read(file: KeyFile) -> None:
    good(file)
    os.chown(file.path, 12_345, -1)
    assert "is not ours alone" in str(read(file))


def test_a_folder_in_the_files_place_is_told(file: KeyFile) -> None:
    file.path.mkdir(parents=True)
    assert "cannot read" in str(read(file))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"source": "https://sso.example.com https://evil.example/jwks"}, "is of another provider"),
        ({"source": None}, "is of another provider"),
        ({"fetched_s": None}, "is of another provider"),
        ({"fetched_s": "1"}, "is of another provider"),
        ({"fetched_s": []}, "is of another provider"),
        ({"jwks": None}, "is damaged"),
        ({"jwks": []}, "is damaged"),
        ({"jwks": {}}, "is damaged"),
        ({"jwks": {"keys": []}}, "is damaged"),
        ({"jwks": json.dumps(JWKS)}, "is damaged"),
    ],
)
def test_another_providers_or_a_damaged_file(changes: dict[str, Any], words: str, file: KeyFile) -> None:
    put(file, json.dumps(good(file, **changes)).encode())
    assert read(file) == f"`{file.path}` {words}: remove it"


def test_every_cut_of_a_file_and_junk_behind_it_is_refused(file: KeyFile) -> None:
    raw = json.dumps(good(file)).encode()
    for spoilt in (*(raw[:end] for end in range(len(raw))), raw + b"x", raw + b"\0", raw + raw):
        put(file, spoilt)
        assert read(file) == f"`{file.path}` is damaged: remove it"


VALUES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.lists(st.integers(), max_size=2)
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    raw=st.binary(max_size=60)
    | st.dictionaries(st.sampled_from(["source", "fetched_s", "jwks"]), VALUES | st.just(JWKS)).map(
        lambda its: json.dumps(its).encode()
    )
)
def test_only_a_value_error_escapes(raw: bytes, file: KeyFile) -> None:
    put(file, raw)
    assert str(read(file)).startswith(f"`{file.path}` is ")


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=VALUES | st.integers(-(10**20), 10**20), name=st.sampled_from(["source", "fetched_s", "jwks"]))
def test_one_odd_member_gives_no_keys_but_those_of_another_time(value: object, name: str, file: KeyFile) -> None:
    put(file, json.dumps(good(file, **{name: value})).encode())
    found = read(file)
    if isinstance(found, tuple):
        assert name == "fetched_s"
        assert 0 <= found[1] <= 100
