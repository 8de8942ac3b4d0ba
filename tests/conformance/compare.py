"""Say where an answer differs from what its case expects."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from tests.conformance.answer import Answer, Option
from tests.conformance.grpcurl import Reply
from tests.conformance.load import Case, Expect, Wanted, WantedBody

CREDENTIAL_HEADERS: Final = frozenset({"authorization", "proxy-authorization", "cookie"})
"""What a server may remove wherever a case does not keep it."""

CREDENTIAL_PARAMETERS: Final = frozenset({"access_token"})

_FOLD: Final = str.maketrans("_.", "--")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What an answer is judged by: the case, the question as it was sent, and the tokens in it.

    ``identity`` are the names that are never a client's to set. ``reasons`` says whether the reasons in the metadata
    are compared as well, which only some servers tell.
    """

    case: Case
    request: Mapping[str, Any]
    tokens: tuple[str, ...]
    identity: frozenset[str]
    reasons: bool


def compare(asked: Asked, answer: Answer, reply: Reply) -> Iterator[str]:
    """Yield each difference."""
    expect = asked.case.expect
    if answer.verdict != expect.verdict:
        yield f"{_describe(answer)} instead of {'an allow' if expect.verdict == 'allow' else 'a deny'}"
        return
    if expect.code is not None and answer.code != expect.code:
        yield f"`status.code` is {answer.code}, not {expect.code}"
    if expect.within_s is not None and reply.took_s > expect.within_s:
        yield f"the answer took {reply.took_s:.1f} s, more than {expect.within_s:g} s"
    yield from _compare_allow(asked, answer) if answer.verdict == "allow" else _compare_deny(expect, answer)
    for name in expect.lacks_headers:
        if any(option.name == name for option in (*answer.headers, *answer.added)):
            yield f"header `{name}` is there"
    yield from _compare_metadata(asked, answer)


def fold(name: str) -> str:
    """Spell a header's name as careless upstreams read it: one case, one separator."""
    return name.lower().translate(_FOLD)


def _compare_allow(asked: Asked, answer: Answer) -> Iterator[str]:
    expect = asked.case.expect
    yield from _compare_options("upstream", expect.sets, answer.headers, lambda its: its.overwrites)
    yield from _compare_options("client", expect.adds, answer.added, lambda its: its.overwrites)
    yield from _compare_options("client", expect.appends, answer.added, lambda its: its.appends)
    for name in expect.removes:
        if name not in answer.removed:
            yield f"header `{name}` is not removed"
    for name in expect.keeps:
        if name in answer.removed or any(option.name == name for option in answer.headers):
            yield f"header `{name}` is not left as it is"
    for name in expect.removes_query:
        if name not in answer.removed_query:
            yield f"query parameter `{name}` is not removed"
    yield from _find_unasked(asked, answer)


def _find_unasked(asked: Asked, answer: Answer) -> Iterator[str]:
    """Look for what an allow changes beyond what its case names.

    Any spelling of an identity header may be removed, and so may what carries credentials unless the case keeps it:
    neither gives anybody anything.
    """
    expect = asked.case.expect
    for option in answer.headers:
        if option.name not in expect.sets:
            yield f"header `{option.name}` is set for the upstream, which nobody asked for"
    for option in answer.added:
        if option.name not in {*expect.adds, *expect.appends, *expect.may_add}:
            yield f"header `{option.name}` is set for the client, which nobody asked for"
    folded = {fold(name) for name in asked.identity}
    for name in answer.removed:
        if name not in {*expect.removes, *CREDENTIAL_HEADERS} and fold(name) not in folded:
            yield f"header `{name}` is removed, which nobody asked for"
    for name in answer.removed_query:
        if name not in {*expect.removes_query, *CREDENTIAL_PARAMETERS}:
            yield f"query parameter `{name}` is removed, which nobody asked for"


def _compare_options(
    whose: str, wanted: Mapping[str, str], options: Iterable[Option], is_so: Callable[[Option], bool]
) -> Iterator[str]:
    known: dict[str, list[Option]] = {}
    for option in options:
        known.setdefault(option.name, []).append(option)
    for name, value in wanted.items():
        if name not in known:
            yield f"header `{name}` is not set for the {whose}"
        for option in known.get(name, ()):
            if option.value != value:
                yield f"header `{name}` is `{option.value}` for the {whose}, not `{value}`"
            elif not is_so(option):
                yield f"header `{name}` has `append` {option.append} and {option.action} for the {whose}"


def _compare_deny(expect: Expect, answer: Answer) -> Iterator[str]:
    if expect.status is not None and answer.status != expect.status:
        yield f"the HTTP status is {answer.status}, not {expect.status}"
    known = {option.name: option.value for option in answer.headers}
    for name, wanted in expect.headers.items():
        if name not in known:
            yield f"header `{name}` is not there"
        elif isinstance(wanted, Wanted):
            yield from _compare_text(f"header `{name}`", wanted, known[name])
        elif known[name] != wanted:
            yield f"header `{name}` is `{known[name]}`, not `{wanted}`"
    if expect.body is not None:
        yield from _compare_text("the body", expect.body, answer.body)
        yield from _compare_members(expect.body, answer.body)


def _compare_text(what: str, wanted: Wanted, text: str) -> Iterator[str]:
    for part in wanted.has:
        if part not in text:
            yield f"{what} is `{text}`, without `{part}`"
    for part in wanted.lacks:
        if part in text:
            yield f"{what} is `{text}`, with `{part}`"


def _compare_members(wanted: WantedBody, text: str) -> Iterator[str]:
    if not wanted.members:
        return
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        yield f"the body is `{text}`, no JSON object"
    elif not wanted.members.items() <= found.items():
        yield f"the body is `{text}`, without {json.dumps(wanted.members)}"


def _compare_metadata(asked: Asked, answer: Answer) -> Iterator[str]:
    expect, known = asked.case.expect, answer.metadata
    for name, value in expect.metadata.items():
        if known.get(name) != value:
            yield f"`{name}` of the metadata is {json.dumps(known.get(name))}, not `{value}`"
    for name in expect.lacks_metadata:
        if name in known:
            yield f"`{name}` is in the metadata"
    if asked.reasons and expect.reason and known.get("reason") not in expect.reason:
        yield f"the reason is {json.dumps(known.get('reason'))}, not `{' or '.join(expect.reason)}`"


def _describe(answer: Answer) -> str:
    if answer.verdict == "allow":
        return "an allow"
    reason = answer.metadata.get("reason")
    return f"a deny {answer.status}" + (f" ({reason})" if reason else "")
