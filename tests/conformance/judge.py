"""Say what is wrong with an answer: what no server may do, whatever was asked, and what this case expects.

Each problem names the statement that is broken.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from tests.conformance.answer import Answer, Option, read_answer
from tests.conformance.grpcurl import Reply
from tests.conformance.load import Case, Expect, Wanted, WantedBody

MIN_TOKEN_CHARS: Final = 16
"""Shorter ones could stand in an answer by chance."""

_FOLD: Final = str.maketrans("_.", "--")
_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]+")
_UNSENDABLE: Final = re.compile("[\r\n\0]")


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong, and the statement that says so."""

    text: str
    origin: str


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


def judge(asked: Asked, reply: Reply) -> tuple[Problem, ...]:
    """Return every problem of an answer; none if it conforms."""
    if reply.answer is None:
        text = f"no answer but an RPC error ({reply.error}): a proxy that fails open lets the request in"
        return (Problem(text, "failure_mode"),)
    answer = read_answer(reply.answer)
    found = [problem for rule in _RULES for problem in rule(asked, answer)]
    found += _find_leaks(asked, reply.answer)
    origin = asked.case.origin
    found += (Problem(text, origin) for text in _compare(asked, answer, reply))
    return tuple(found)


# --- what holds of every answer ----------------------------------------------------------------------------------


def _check_shape(asked: Asked, answer: Answer) -> Iterator[Problem]:
    if not answer.is_said:
        yield Problem("`status` is not there, and an empty one is an allow: say it", "check_status")
    if answer.kind == "error_response":
        yield Problem("a verdict in `error_response`, which `failure_mode_allow` turns into an allow", "error_response")
    elif answer.kind != ("denied_response" if answer.code else "ok_response"):
        text = f"`status.code` is {answer.code} with `{answer.kind or 'nothing'}` beside it"
        yield Problem(text, "http_response")
    if answer.has_old_metadata:
        yield Problem("`ok_response.dynamic_metadata` is set, which hides the other one", "ok_dynamic_metadata")


def _check_status(asked: Asked, answer: Answer) -> Iterator[Problem]:
    status = answer.status
    if status is not None and not 300 <= status <= 599 and status != asked.case.expect.status:
        yield Problem(f"a deny with the HTTP status {status}, which looks like a success", "denied_status")


def _check_options(asked: Asked, answer: Answer) -> Iterator[Problem]:
    for option in (*answer.headers, *answer.added):
        name = option.name
        if not _NAME.fullmatch(name):
            yield Problem(f"header `{name}` is not a name in lower case", "lower_case")
        if _UNSENDABLE.search(option.value):
            yield Problem(f"the value of `{name}` has a line break or a zero byte", "valid_mutations")
        if option.append is None:
            yield Problem(f"`append` of `{name}` is not said", "append")
        elif not (option.overwrites or option.appends):
            text = f"`append` of `{name}` is {str(option.append).lower()}, and `append_action` is {option.action}"
            yield Problem(text, "append_action")


def _check_removed(asked: Asked, answer: Answer) -> Iterator[Problem]:
    for name in answer.removed:
        if name.startswith(":") or name.lower() == "host":
            yield Problem(f"`{name}` cannot be removed", "pseudo_headers")
        elif not _NAME.fullmatch(name):
            yield Problem(f"removed header `{name}` is not a name in lower case", "lower_case")
    for name in {option.name for option in answer.headers} & set(answer.removed):
        yield Problem(f"`{name}` is both set and removed: Envoy removes last", "headers_to_remove")


def _check_identity(asked: Asked, answer: Answer) -> Iterator[Problem]:
    """Look for an identity header of the client's that would reach the upstream, in whatever spelling."""
    if answer.verdict == "deny":
        return
    settled = {option.name for option in answer.headers if option.overwrites} | set(answer.removed)
    folded = {_fold(name) for name in asked.identity}
    sent = {name.lower() for name in _header_names(asked.request) if _fold(name) in folded}
    for name in sorted((asked.identity | sent) - settled):
        yield Problem(f"`{name}` is neither overwritten nor removed: a client could set it", "ok_headers")


_RULES: Final[tuple[Callable[[Asked, Answer], Iterator[Problem]], ...]] = (
    _check_shape,
    _check_status,
    _check_options,
    _check_removed,
    _check_identity,
)


def _find_leaks(asked: Asked, document: Mapping[str, Any]) -> Iterator[Problem]:
    text = json.dumps(document)
    if any(len(token) >= MIN_TOKEN_CHARS and token in text for token in asked.tokens):
        yield Problem("the answer repeats the token", "not_leaked")


def _fold(name: str) -> str:
    return name.lower().translate(_FOLD)


def _header_names(request: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of a question's headers, where they are texts."""
    http = request.get("attributes", {})
    http = http.get("request", {}).get("http", {}) if isinstance(http, Mapping) else {}
    headers = http.get("headers", {})
    yield from headers if isinstance(headers, Mapping) else ()
    yield from (its["key"] for its in http.get("header_map", {}).get("headers", ()))


# --- what this case expects --------------------------------------------------------------------------------------


def _compare(asked: Asked, answer: Answer, reply: Reply) -> Iterator[str]:
    expect = asked.case.expect
    if answer.verdict != expect.verdict:
        yield f"{_describe(answer)} instead of {'an allow' if expect.verdict == 'allow' else 'a deny'}"
        return
    if expect.code is not None and answer.code != expect.code:
        yield f"`status.code` is {answer.code}, not {expect.code}"
    if expect.within_s is not None and reply.took_s > expect.within_s:
        yield f"the answer took {reply.took_s:.1f} s, more than {expect.within_s:g} s"
    yield from _compare_allow(expect, answer) if answer.verdict == "allow" else _compare_deny(expect, answer)
    for name in expect.lacks_headers:
        if any(option.name == name for option in (*answer.headers, *answer.added)):
            yield f"header `{name}` is there"
    yield from _compare_metadata(asked, answer)


def _compare_allow(expect: Expect, answer: Answer) -> Iterator[str]:
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


def _compare_options(
    whose: str, wanted: Mapping[str, str], options: Iterable[Option], is_so: Callable[[Option], bool]
) -> Iterator[str]:
    known = {option.name: option for option in options}
    for name, value in wanted.items():
        if name not in known:
            yield f"header `{name}` is not set for the {whose}"
        elif known[name].value != value:
            yield f"header `{name}` is `{known[name].value}` for the {whose}, not `{value}`"
        elif not is_so(known[name]):
            yield f"header `{name}` has `append` {known[name].append} and {known[name].action} for the {whose}"


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
