"""Say what is wrong with an answer: what no server may do, whatever was asked, and what this case expects.

Each problem names the statement that is broken.
"""

from __future__ import annotations

import base64
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from tests.conformance.answer import Answer, read_answer
from tests.conformance.compare import Asked, compare, fold
from tests.conformance.grpcurl import Reply

MIN_TOKEN_CHARS: Final = 16
"""Shorter ones could stand in an answer by chance."""

_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]+")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
"""All but the tab, which a field value may have inside."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong, and the statement that says so."""

    text: str
    origin: str


def judge(asked: Asked, reply: Reply) -> tuple[Problem, ...]:
    """Return every problem of an answer; none if it conforms."""
    if reply.answer is None:
        text = f"no answer but an RPC error ({reply.error}): a proxy that fails open lets the request in"
        return (Problem(text, "failure_mode"),)
    answer = read_answer(reply.answer)
    found = [problem for rule in _RULES for problem in rule(asked, answer)]
    found += _find_leaks(asked, answer, reply.answer)
    origin = asked.case.origin
    found += (Problem(text, origin) for text in compare(asked, answer, reply))
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
        if _CONTROL.search(option.value):
            yield Problem(f"the value of `{name}` has a control character", "valid_mutations")
        if option.is_said_twice:
            yield Problem(f"`{name}` has both a `value` and a `raw_value`", "one_value")
        if option.append is None:
            yield Problem(f"`append` of `{name}` is not said", "append")
        elif not (option.overwrites or option.appends):
            text = f"`append` of `{name}` is {str(option.append).lower()}, and `append_action` is {option.action}"
            yield Problem(text, "append_action")


def _check_repeated(asked: Asked, answer: Answer) -> Iterator[Problem]:
    """Look for names that come twice: which of them is seen, or whether both are, is then the order's to say.

    For the client some fields are meant to come several times, each appended.
    """
    for name, times in Counter(option.name.lower() for option in answer.headers).items():
        if times > 1 and answer.verdict == "allow":
            yield Problem(f"`{name}` stands {times} times among the headers for the upstream", "ok_headers")
    shown = answer.added if answer.verdict == "allow" else (*answer.added, *answer.headers)
    overwritten = {option.name.lower() for option in shown if not option.appends}
    for name, times in Counter(option.name.lower() for option in shown).items():
        if times > 1 and name in overwritten:
            yield Problem(f"`{name}` stands {times} times among the headers for the client", "append_action")


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
    folded = {fold(name) for name in asked.identity}
    sent = {name.lower() for name in _header_names(asked.request) if fold(name) in folded}
    for name in sorted((asked.identity | sent) - settled):
        yield Problem(f"`{name}` is neither overwritten nor removed: a client could set it", "ok_headers")
    for option in answer.headers:
        if fold(option.name) in folded and not option.overwrites:
            yield Problem(f"`{option.name}` is an identity header, and may only be overwritten", "ok_headers")


_RULES: Final[tuple[Callable[[Asked, Answer], Iterator[Problem]], ...]] = (
    _check_shape,
    _check_status,
    _check_options,
    _check_repeated,
    _check_removed,
    _check_identity,
)


def _find_leaks(asked: Asked, answer: Answer, document: Mapping[str, Any]) -> Iterator[Problem]:
    texts = [json.dumps(document), *(option.value for option in (*answer.headers, *answer.added))]
    tokens = [token for token in asked.tokens if len(token) >= MIN_TOKEN_CHARS]
    if any(token in text for token in tokens for text in texts):
        yield Problem("the answer repeats the token", "not_leaked")
    elif any(spelling in text for token in tokens for spelling in _spell_base64(token) for text in texts):
        yield Problem("the answer repeats the token in base64", "not_leaked")


def _spell_base64(token: str) -> Iterator[str]:
    """Yield what of a token's base64 is the same whatever stands around it, in both alphabets (RFC 4648 §4, §5)."""
    for before in range(3):
        octets = b" " * before + token.encode()
        whole = octets[: len(octets) // 3 * 3]
        # Up to three characters at the start are made of what stands before as well.
        yield base64.b64encode(whole).decode()[4 if before else 0 :]
        yield base64.urlsafe_b64encode(whole).decode()[4 if before else 0 :]


def _header_names(request: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of a question's headers, where they are texts."""
    http = request.get("attributes", {})
    http = http.get("request", {}).get("http", {}) if isinstance(http, Mapping) else {}
    headers = http.get("headers", {})
    yield from headers if isinstance(headers, Mapping) else ()
    yield from (its["key"] for its in http.get("header_map", {}).get("headers", ()))
