"""Header names, values and templates: what is safe to send, and whose names they are."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authz.core.headers import (
    MAX_NAME_CHARS,
    are_apart,
    find_odd_names,
    fold_name,
    match_mark,
    parse_header_name,
    parse_header_value,
    parse_identity_name,
    parse_template,
    plan_identity,
    render_identity,
    render_odd_names,
    render_template,
)
from authz.model import Expectation, HeaderAction, Provider, Role
from tests.core.build import principal


@pytest.mark.parametrize("name", ["x", "X-User", "a_b.c~1", "a" * MAX_NAME_CHARS])
def test_names(name: str) -> None:
    assert parse_header_name(name) == name.lower()


@pytest.mark.parametrize("name", ["", "a b", "a:b", "\u00e4", "a\n", ":path", "a" * (MAX_NAME_CHARS + 1)])
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(ValueError, match="is not a header name"):
        parse_header_name(name)


@pytest.mark.parametrize("value", ["", "a", "a b", "a\\b%,;=", "X a X"])
def test_values(value: str) -> None:
    assert parse_header_value(value) == value


@pytest.mark.parametrize("value", [" a", "a ", "a\tb", "a\r\nb", "a\0", "\x7f", "\u00e4", "\u00a0a", "a\u2028b"])
def test_what_is_no_safe_value(value: str) -> None:
    with pytest.raises(ValueError, match="not safe as a header value"):
        parse_header_value(value)


@pytest.mark.parametrize(
    "name",
    ["Host", "authorization", "X_Forwarded_For", "x.request.id", "x-envoy-internal", "X-Envoy-", "Cookie", "via"],
)
def test_names_that_steer_proxies_are_not_ours_to_set(name: str) -> None:
    with pytest.raises(ValueError, match="steers proxies"):
        parse_identity_name(name)
    assert parse_identity_name("x-envoi") == "x-envoi"


def test_names_that_careless_readers_take_for_one() -> None:
    assert fold_name("X_User.Id") == fold_name("x-user-id") == "x-user-id"
    assert fold_name("xuser") != fold_name("x-user")


def test_templates() -> None:
    template = parse_template('{{{sub}}}-{claims.a.b}{claims.["c.d"]}')
    assert template.text == '{{{sub}}}-{claims.a.b}{claims.["c.d"]}'
    assert template.parts == ("{", ("sub",), "}", "-", ("claims", "a", "b"), ("claims", "c.d"))
    assert template.slots == {"sub", "claims"}
    assert parse_template("fixed").parts == ("fixed",)
    for text in ('{claims.["a}', '{claims.a"]}', "{subject}", "{other.sub}"):
        parsed = parse_template(text) if text.startswith("{claims") else None
        if parsed is not None:
            assert parsed.slots == {"claims"}
            continue
        with pytest.raises(ValueError, match=r"is no value: write one of `\{sub\}`"):
            parse_template(text)


def test_roles_cannot_be_mistaken_for_others() -> None:
    roles = frozenset({Role("\u00e4:b"), Role("b", "a%3A"), Role("x y"), Role("\ud800")})
    value = render_template(parse_template("{roles}"), principal(roles=roles))
    assert value == "a%253A:b,x y,%C3%A4%3Ab,?"


def test_every_edit_sets_or_removes() -> None:
    plan = plan_identity({"x-user": parse_template("{sub}"), "x-mail-box": parse_template("{email}")})
    seen = ["x_mail-box", "x.user", "other_name", "x-user", "x-mail.box"]
    own = render_identity(plan, principal())
    folded = frozenset(map(fold_name, ("x-user", "x-mail-box")))
    edits = [
        (edit.action, edit.name, edit.value) for edit in (*own, *render_odd_names(folded, own, find_odd_names(seen)))
    ]
    assert edits == [
        (HeaderAction.SET, "x-user", "alice"),
        (HeaderAction.REMOVE, "x-mail-box", ""),
        *((HeaderAction.REMOVE, name, "") for name in ("x.mail.box", "x.user", "x_mail_box", "x_user")),
        (HeaderAction.REMOVE, "x_mail-box", ""),
        (HeaderAction.REMOVE, "x-mail.box", ""),
    ]
    assert find_odd_names(["x-user", "other"]) == ()
    nobody = render_identity(plan, None)
    assert {edit.action for edit in nobody} == {HeaderAction.REMOVE}


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=8))
def test_values_read_back_as_what_they_were(text: str) -> None:
    """Whatever is encoded, and whatever is not: decoding gives the text, and no element can hold a separator."""
    value = render_template(parse_template("{sub}"), principal(subject=text))
    if value is None:
        assert text == ""
        return
    assert unquote(value) == text
    assert "," not in value
    assert value.isascii()
    assert value.isprintable()
    assert value == value.strip(" ")
    roles = render_template(parse_template("{roles}"), principal(roles=frozenset({Role(text, "c")})))
    assert roles is not None
    client, _, name = roles.partition(":")
    assert (client, unquote(name)) == ("c", text)
    assert "," not in name
    assert ":" not in name


def provider(name: str, issuer: str) -> Provider:
    expectation = Expectation(issuer=issuer, audiences=None, algorithms=frozenset({"RS256"}))
    return Provider(name=name, issuer=issuer, expectation=expectation, keys=None)


A, B = provider("a", "https://a.example"), provider("a:b", "https://a.example:8443")


@pytest.mark.parametrize(
    ("one", "other", "apart"),
    [
        ("{provider} {sub}", "{provider} {sub}", True),
        ("{sub} {issuer}", "{sub} {issuer}", True),
        ("user-{provider} {sub}", "user-{provider} {sub}", True),
        ("{issuer} {sub}", "{issuer} {sub}", True),
        # `a:` + `b:x` is `a:b:` + `x`.
        ("{provider}:{sub}", "{provider}:{sub}", False),
        ("{provider}:{sub}", "{provider}={sub}", False),
        ("{provider}={sub}", "{provider}:{sub}", True),
        ("{provider} {sub}", "{sub}", False),
        ("{sub}", "{sub}", False),
        ("{provider}{sub}", "{provider}{sub}", False),
        ("{provider}", "{provider}", False),
        ("fixed", "fixed", False),
        ("{sub}{provider}", "{sub}{provider}", False),
        ("{provider} {sub}", "{sub} {provider}", False),
        ("{sub} {email}", "{provider} {sub}", False),
        ("{sub} {provider} {email}", "{sub} {provider} {email}", False),
    ],
)
def test_templates_of_two_providers_say_whose_they_are(one: str, other: str, *, apart: bool) -> None:
    marks = match_mark(parse_template(one), A), match_mark(parse_template(other), B)
    assert are_apart(*marks) is apart
    assert are_apart(*reversed(marks)) is apart


@pytest.mark.parametrize(
    ("template", "text", "at_end"),
    [
        ("{provider} {sub}", "a ", False),
        ("u-{provider}/{sub}", "u-a/", False),
        ("{sub} {issuer}", " https://a.example", True),
        ("{sub}:{provider}!x", ":a!x", True),
    ],
)
def test_a_mark_is_all_that_stands_around_whose_it_is(template: str, text: str, *, at_end: bool) -> None:
    mark = match_mark(parse_template(template), A)
    assert mark is not None
    assert (mark.text, mark.at_end) == (text, at_end)


def test_a_mark_that_ends_another_is_not_apart_from_it() -> None:
    """`x:b` + `:a` is `x` + `:b:a`."""
    template = parse_template("{sub}:{provider}")
    marks = match_mark(template, A), match_mark(template, provider("b:a", "https://b.example"))
    assert not are_apart(*marks)
    assert not are_apart(*reversed(marks))
    assert are_apart(match_mark(template, A), match_mark(template, B))


@pytest.mark.parametrize(
    ("text", "value"), [(" X ", "%20X%20"), ("  XX", "%20%20XX"), (" a b ", "%20a b%20"), (" ", "%20")]
)
def test_outer_blanks_are_encoded_and_nothing_else_is_lost(text: str, value: str) -> None:
    assert render_template(parse_template("{sub}"), principal(subject=text)) == value


@given(st.text(min_size=1, max_size=12), st.text(min_size=1, max_size=12))
def test_values_with_marks_apart_differ(one: str, other: str) -> None:
    for template in map(parse_template, ("{provider} {sub}", "{sub} {issuer}", "<{issuer}> {sub}")):
        assert are_apart(match_mark(template, A), match_mark(template, B))
        values = [
            render_template(template, principal(provider=its.name, issuer=its.issuer, subject=subject))
            for its, subject in ((A, one), (B, other))
        ]
        assert None in values or values[0] != values[1]


PARSERS: list[Callable[[str], object]] = [parse_header_name, parse_header_value, parse_identity_name, parse_template]
TEMPLATE_PIECES = st.sampled_from(
    [
        "{",
        "}",
        "{{",
        "}}",
        "{sub}",
        "{claims.a}",
        '{claims.["a.b"]}',
        "{claims.}",
        "{}",
        "x-user",
        " ",
        "\n",
        "\u00e4",
        "_",
    ]
)


@pytest.mark.parametrize("parse", PARSERS, ids=lambda its: its.__name__)
@given(text=st.text(max_size=20) | st.lists(TEMPLATE_PIECES, max_size=8).map("".join))
def test_only_a_value_error_escapes(parse: Callable[[str], object], text: str) -> None:
    try:
        parse(text)
    except ValueError as error:
        told = str(error)
    else:
        assert text.isascii()
        assert text.isprintable()
        return
    assert "`" in told


@given(st.lists(TEMPLATE_PIECES, max_size=8).map("".join))
def test_what_a_template_gives_is_safe_to_send(text: str) -> None:
    try:
        template = parse_template(text)
    except ValueError:
        return
    value = render_template(template, principal(claims={"a": "\r\nx: y", "a.b": ["\u00e4", 1]}))
    assert value is None or (value.isascii() and value.isprintable())


def test_a_cut_template_is_whole_or_refused_and_junk_behind_it_is_told() -> None:
    text = '{provider}:{claims.["a.b"]}'
    read = {"", "{provider}", "{provider}:"}
    for end in range(len(text)):
        if text[:end] in read - {""}:
            assert parse_template(text[:end]).slots == {"provider"}
        else:
            with pytest.raises(ValueError, match=r"has a lone `\{`|an empty template"):
                parse_template(text[:end])
    for junk in ("{", "}", "\n", "\u00e4", " ", "{}"):
        with pytest.raises(ValueError, match="`"):
            parse_template(text + junk)
