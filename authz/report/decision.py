"""Print one decision and how it came about, for ``authz check``.

In JSON every member is always there, null where it does not apply. Nothing printed is a token: headers that carry
credentials show that they are set, not to what.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import click

from authz.explain import Explanation, Step
from authz.found import HIDDEN, SECRET_HEADERS, Found, hide_tokens
from authz.model import Allow, Deny, HeaderAction, HeaderEdit, Principal, Reason
from authz.reasons import REASON_TEXT
from authz.report.lines import plain, print_plain

_LISTS: Final = frozenset({"roles", "groups", "scopes"})
_ALONE: Final = frozenset({"client", "address"})
_MISSING: Final[Mapping[str, str]] = {"principal": "nobody", "client": "none", "address": "an unknown address"}
_MARKS: Final[Mapping[bool | None, str]] = {True: "yes ", False: "NO  ", None: "    "}


def print_explanation(explanation: Explanation, *, as_json: bool) -> None:
    """Print a decision and how it came about."""
    if as_json:
        click.echo(json.dumps(_describe_decision(explanation), indent=2))
        return
    for step in explanation.steps:
        print_plain(f"{_MARKS[step.held]}{step.stage}: {_render_step(step)}")
    decision, token = explanation.decision, explanation.token.reveal()
    match decision:
        case Allow():
            click.secho(plain(f"allow by rule `{decision.rule}`"), fg="green", bold=True)
            _print_edits("upstream", decision.upstream, token)
            _print_edits("client", decision.downstream, token)
            for name in decision.remove_query:
                print_plain(f"  upstream: remove query parameter {name}")
        case Deny():
            click.secho(f"deny {decision.status} {decision.reason}", fg="red", bold=True)
            print_plain(f"{REASON_TEXT[decision.reason].meaning}\n{REASON_TEXT[decision.reason].remedy}")
            _print_edits("client", decision.headers, token)
        case _:
            click.secho("undecided", fg="yellow", bold=True)


def _describe_decision(explanation: Explanation) -> dict[str, Any]:
    decision, token = explanation.decision, explanation.token.reveal()
    allow = decision if isinstance(decision, Allow) else None
    deny = decision if isinstance(decision, Deny) else None
    text = None if deny is None else REASON_TEXT[deny.reason]
    downstream = allow.downstream if allow is not None else deny.headers if deny is not None else ()
    return {
        "decision": "allow" if allow is not None else "deny" if deny is not None else "undecided",
        "rule": explanation.rule or None,
        "guard": None if deny is None else deny.guard or None,
        "status": None if deny is None else deny.status,
        "reason": None if deny is None else deny.reason.value,
        "detail": None if deny is None else hide_tokens(deny.detail, token=token) or None,
        "meaning": None if text is None else text.meaning,
        "remedy": None if text is None else text.remedy,
        "principal": None if decision is None else _describe_principal(decision.principal),
        "steps": [_describe_step(step) for step in explanation.steps],
        "headers": [_describe_edit(edit, token) for edit in (allow.upstream if allow is not None else ())],
        "response_headers": [_describe_edit(edit, token) for edit in downstream],
        "remove_query": [] if allow is None else list(allow.remove_query),
    }


def _describe_principal(principal: Principal | None) -> dict[str, str | None] | None:
    if principal is None:
        return None
    return {
        "provider": principal.provider,
        "issuer": principal.issuer,
        "subject": principal.subject,
        "client": principal.client_id,
    }


def _describe_step(step: Step) -> dict[str, Any]:
    return {
        "stage": step.stage,
        "text": step.text,
        "held": step.held,
        "reason": None if step.reason is None else step.reason.value,
        "found": None if step.found is None else dict(step.found.values),
        "missing": [] if step.found is None else list(step.found.missing),
    }


def _describe_edit(edit: HeaderEdit, token: str) -> dict[str, str | None]:
    return {"action": edit.action.value, "name": edit.name, "value": _show_edit(edit, token)}


def _show_edit(edit: HeaderEdit, token: str) -> str | None:
    if edit.action is HeaderAction.REMOVE:
        return None
    return HIDDEN if edit.name in SECRET_HEADERS else hide_tokens(edit.value, token=token)


def _print_edits(where: str, edits: Iterable[HeaderEdit], token: str) -> None:
    for edit in edits:
        value = _show_edit(edit, token)
        print_plain(f"  {where}: {edit.action} {edit.name}" + (f": {value}" if value is not None else ""))


def _render_step(step: Step) -> str:
    parts = [step.text]
    if step.reason is Reason.CONDITION_ERROR:
        parts.append("cannot be judged")
    if step.found is not None:
        parts.append(f"found {', '.join(_render_found(step.found)) or 'nothing to look at'}")
    return ": ".join(parts)


def _render_found(found: Found) -> Iterator[str]:
    for name, value in found.values.items():
        if name in _LISTS and isinstance(value, list):
            yield ", ".join(map(str, value)) or "none"
        elif name in _ALONE:
            yield str(value)
        else:
            yield f"{name} = {json.dumps(value, ensure_ascii=False)}"
    for name in found.missing:
        yield _MISSING.get(name, f"no {name}")
