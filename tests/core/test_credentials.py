"""The one credential of a request, and every spelling in which there might be two."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authz.core.credentials import (
    MAX_AUTHORIZATION_BYTES,
    match_bearer,
    match_credential,
    parse_bearer,
    strip_cookies,
)
from authz.core.jwt import MAX_TOKEN_BYTES
from authz.core.path import parse_target
from authz.model import CredentialPlace, Host, PlaceKind, Reason, Rejected, Request

AUTHORIZATION = CredentialPlace(kind=PlaceKind.AUTHORIZATION)
HEADER = CredentialPlace(kind=PlaceKind.HEADER, name="x-token")
COOKIE = CredentialPlace(kind=PlaceKind.COOKIE, name="session")
QUERY = CredentialPlace(kind=PlaceKind.QUERY, name="token")
EVERY = (AUTHORIZATION, HEADER, COOKIE, QUERY)
LONGEST = "a" * (MAX_AUTHORIZATION_BYTES - len("Bearer "))


def request(target: str = "/", repeated: frozenset[str] = frozenset(), **headers: str) -> Request:
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return Request(
        method="GET", host=Host(name="h"), target=parse_target(target, method="GET"), headers=fields, repeated=repeated
    )


def found(asked: Request, *places: CredentialPlace) -> str | Reason | None:
    try:
        credential = match_credential(asked, places or EVERY)
    except Rejected as rejected:
        return rejected.reason
    return None if credential is None else credential.token


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("Bearer abc", "abc"),
        ("bearer abc", "abc"),
        ("BEARER a-._~+/b==", "a-._~+/b=="),
        ("Bearer  abc", Reason.CREDENTIAL_MALFORMED),
        ("Bearer abc ", Reason.CREDENTIAL_MALFORMED),
        ("Bearer\tabc", Reason.CREDENTIAL_MALFORMED),
        ("Bearer", Reason.CREDENTIAL_MALFORMED),
        ("Bearer ", Reason.CREDENTIAL_MALFORMED),
        ("Bearer =", Reason.CREDENTIAL_MALFORMED),
        ("Bearer a=b", Reason.CREDENTIAL_MALFORMED),
        ("Bearer a\u00e9", Reason.CREDENTIAL_MALFORMED),
        ("Bearer a\n", Reason.CREDENTIAL_MALFORMED),
        ("", Reason.CREDENTIAL_MALFORMED),
        (" Bearer abc", Reason.CREDENTIAL_MALFORMED),
        ("Basic abc", Reason.OTHER_SCHEME),
        ("Basic", Reason.OTHER_SCHEME),
        ("DPoP abc", Reason.OTHER_SCHEME),
        ("Bearerabc", Reason.OTHER_SCHEME),
        ("Bearer abc, Bearer def", Reason.CREDENTIAL_TWICE),
        ("Basic abc,Bearer def", Reason.CREDENTIAL_TWICE),
        ("Basic abc, \tX def", Reason.CREDENTIAL_TWICE),
        ("Basic abc,\u00a0X def", Reason.OTHER_SCHEME),
        ("Digest a=b, c=d", Reason.OTHER_SCHEME),
        ("Bearer " + "a" * MAX_TOKEN_BYTES, "a" * MAX_TOKEN_BYTES),
        ("Bearer " + "a" * (MAX_TOKEN_BYTES + 1), Reason.CREDENTIAL_TOO_LARGE),
        ("," * 10_000_000, Reason.CREDENTIAL_TOO_LARGE),
    ],
)
def test_bearer(value: str, expected: str | Reason) -> None:
    if isinstance(expected, Reason):
        with pytest.raises(Rejected) as caught:
            parse_bearer(value)
        assert caught.value.reason is expected
    else:
        assert parse_bearer(value) == expected


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (request(), None),
        (request(authorization="Bearer abc"), "abc"),
        (request(x_token="abc"), "abc"),
        (request(x_token="abc,def"), Reason.CREDENTIAL_TWICE),
        (request(x_token="abc, \tX"), Reason.CREDENTIAL_TWICE),
        (request(x_token="abc,\u00a0def"), Reason.CREDENTIAL_MALFORMED),
        (request(x_token="abc,?"), Reason.CREDENTIAL_MALFORMED),
        (request(x_token=""), Reason.CREDENTIAL_MALFORMED),
        (request(x_token="a" * MAX_TOKEN_BYTES), "a" * MAX_TOKEN_BYTES),
        (request(x_token="a" * (MAX_TOKEN_BYTES + 1)), Reason.CREDENTIAL_TOO_LARGE),
        (request(cookie="a=1; session=abc; b=2"), "abc"),
        (request(cookie="a=1;session=abc"), "abc"),
        (request(cookie="session=abc=="), "abc=="),
        (request(cookie="\ta=1;\tsession=abc\t"), "abc"),
        (request(cookie="a=1;\u00a0session=abc"), Reason.CREDENTIAL_MALFORMED),
        (request(cookie="a=1; other=abc"), None),
        (request(cookie="session=abc; session=def"), Reason.CREDENTIAL_TWICE),
        (request(cookie="session=abc; Session=def"), Reason.CREDENTIAL_MALFORMED),
        (request(cookie='"session"=abc'), Reason.CREDENTIAL_MALFORMED),
        (request(cookie="=session=abc"), Reason.CREDENTIAL_MALFORMED),
        (request(cookie="session =abc"), Reason.CREDENTIAL_MALFORMED),
        (request(cookie="%73ession=abc"), Reason.CREDENTIAL_MALFORMED),
        (request(cookie="a=1,session=abc"), Reason.CREDENTIAL_MALFORMED),
        (request(cookie="session"), Reason.CREDENTIAL_MALFORMED),
        (request(cookie="session="), Reason.CREDENTIAL_MALFORMED),
        (request("/?token=abc"), "abc"),
        (request("/?a=1&token=abc&b"), "abc"),
        (request("/?token=a%2Eb"), "a.b"),
        (request("/?token=a+b"), Reason.CREDENTIAL_MALFORMED),
        (request("/?token"), Reason.CREDENTIAL_MALFORMED),
        (request("/?token=abc&token=def"), Reason.CREDENTIAL_TWICE),
        (request("/?tok%65n=abc"), Reason.QUERY_AMBIGUOUS),
        (request("/?Token=abc"), Reason.QUERY_AMBIGUOUS),
        (request("/?+token=abc"), Reason.QUERY_AMBIGUOUS),
        (request("/?a=1;token=abc"), Reason.QUERY_AMBIGUOUS),
        (request("/?a=1;b=2"), None),
        (request("/?token=abc", authorization="Bearer abc"), Reason.CREDENTIAL_TWICE),
        (request("/?token=abc", authorization="Basic abc"), Reason.CREDENTIAL_TWICE),
        (request(x_token="abc", cookie="session=abc"), Reason.CREDENTIAL_TWICE),
        (request(authorization="Bearer a", repeated=frozenset({"authorization"})), Reason.CREDENTIAL_TWICE),
        (request(x_token="a", repeated=frozenset({"x-token"})), Reason.CREDENTIAL_TWICE),
    ],
)
def test_one_credential_or_none(asked: Request, expected: str | Reason | None) -> None:
    assert found(asked) == expected


@pytest.mark.parametrize(
    ("asked", "places", "token"),
    [
        (request(authorization="Bearer abc"), (AUTHORIZATION,), "abc"),
        (request(authorization="Bearer \xff ,"), (AUTHORIZATION,), "\xff ,"),
        (request(authorization="bearer abc"), (AUTHORIZATION,), None),
        (request(authorization="Bearer"), (AUTHORIZATION,), None),
        (request(authorization="Basic abc"), (AUTHORIZATION,), None),
        (request(x_token="Bearer abc"), (AUTHORIZATION,), None),
        (request(authorization="Bearer abc"), EVERY, None),
        (request(authorization="Bearer abc"), (HEADER,), None),
        (request(authorization="Bearer abc", repeated=frozenset({"authorization"})), (AUTHORIZATION,), None),
        (request(authorization="Bearer abc", repeated=frozenset({"x-token"})), (AUTHORIZATION,), "abc"),
        (request(authorization="Bearer " + LONGEST), (AUTHORIZATION,), LONGEST),
        (request(authorization=f"Bearer {LONGEST}a"), (AUTHORIZATION,), None),
    ],
)
def test_the_short_way_to_a_known_token(asked: Request, places: tuple[CredentialPlace, ...], token: str | None) -> None:
    credential = match_bearer(asked, places)
    assert (None if credential is None else (credential.token, credential.place)) == (
        None if token is None else (token, AUTHORIZATION)
    )


@given(st.one_of(st.text(max_size=12), st.from_regex(r"[Bb]earer [\x20-\x7e]{0,9}", fullmatch=True)))
def test_the_short_way_finds_what_the_long_one_finds(value: str) -> None:
    asked = request(authorization=value)
    short, long = match_bearer(asked, (AUTHORIZATION,)), found(asked, AUTHORIZATION)
    if short is not None and isinstance(long, str) and not isinstance(long, Reason):
        assert short.token == long


def test_a_cookies_token_is_taken_as_it_stands_and_its_name_exactly() -> None:
    assert found(request(cookie="session=a+b/c"), COOKIE) == "a+b/c"
    assert found(request(cookie="session=a%2Bb"), COOKIE) is Reason.CREDENTIAL_MALFORMED
    assert found(request(cookie="Xsession=abc"), COOKIE) is None


def test_a_credential_says_where_it_stood() -> None:
    for asked, place in (
        (request(authorization="Bearer abc"), AUTHORIZATION),
        (request(x_token="abc"), HEADER),
        (request(cookie="session=abc"), COOKIE),
        (request("/?token=abc"), QUERY),
    ):
        credential = match_credential(asked, EVERY)
        assert credential is not None
        assert credential.place == place


def test_places_that_the_rule_does_not_name_are_not_looked_at() -> None:
    asked = request("/?token=abc&token=def", authorization="Bearer abc", x_token="def", cookie="session=ghi")
    assert found(asked, AUTHORIZATION) == "abc"
    assert found(asked, COOKIE) == "ghi"


@pytest.mark.parametrize(
    ("cookie", "left"),
    [
        ("a=1; b=2", "a=1; b=2"),
        ("session=x", None),
        ("session=x; ", None),
        ("session=x; ;", None),
        ("a=1; session=x; b=2", "a=1; b=2"),
        ("SESSION=x; a=1", "a=1"),
        ('"session"=x; a=1', "a=1"),
        ("=session=x; a=1", "a=1"),
        ("%73ession=x; a=1", "a=1"),
        ("a=1, session=x; b=2", "a=1; b=2"),
        ("a=1,c=2, session=x", "a=1,c=2"),
        ("session=x; XX=1", "XX=1"),
        ("session; a=1", "a=1"),
        ("mysession=1", "mysession=1"),
        ("a=%41", "a=%41"),
    ],
)
def test_token_cookies_never_reach_the_upstream(cookie: str, left: str | None) -> None:
    assert strip_cookies(cookie, frozenset({"session"})) == left


@pytest.mark.timeout(20)
@pytest.mark.parametrize("noise", [" ", '"', "\t", "=", "\u3000", ";", ",", "%", "+", "&"])
def test_no_value_takes_time_squared(noise: str) -> None:
    """A hundred thousand characters of what is stripped, split or decoded: milliseconds, or else minutes."""
    long = noise * 100_000
    places = (CredentialPlace(kind=PlaceKind.COOKIE, name="s"), CredentialPlace(kind=PlaceKind.QUERY, name="s"))
    for text in (f"a{long}b=1", f"{long}s=1", f"s{long}=1"):
        strip_cookies(text, frozenset({"s"}))
        target = replace(parse_target("/x", method="GET"), query=text)
        for asked in (replace(request(), headers={"cookie": text}), replace(request(), target=target)):
            with contextlib.suppress(Rejected):
                match_credential(asked, places)
    with contextlib.suppress(Rejected):
        parse_bearer(f"Bearer {long}x"[:16_000])


def test_a_credential_does_not_show_its_token() -> None:
    credential = match_credential(request(authorization="Bearer hidden"), (AUTHORIZATION,))
    assert credential is not None
    assert "hidden" not in repr(credential)


@given(st.text(max_size=40), st.text(max_size=40), st.text(max_size=40))
def test_only_rejected_escapes(authorization: str, cookie: str, query: str) -> None:
    with contextlib.suppress(Rejected):
        parse_bearer(authorization)
    with contextlib.suppress(Rejected):
        match_credential(request("/?" + query, authorization=authorization, cookie=cookie, x_token=cookie), EVERY)
    strip_cookies(cookie, frozenset({"session"}))
