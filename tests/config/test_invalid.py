"""Each file under tests/policies/invalid has one thing wrong: the first line says where, and in which words we tell."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import jsonschema
import pytest

from authz import config
from authz.config import json_schema, load
from authz.config.document import parse_document
from authz.core import condition, headers, hosts, trie
from authz.model import ConfigError
from tests.tls import Authority

POLICIES = Path(__file__).parent.parent / "policies"
INVALID = sorted(POLICIES.glob("invalid/*.yaml"))
VALID = sorted(POLICIES.glob("valid/*.yaml"))
SECRETS = {"HS_SECRET": "0123456789012345678901234567890123456789", "SHORT": "short", "SECRET": "hidden-away"}


@pytest.fixture(scope="module")
def environ(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    cert, key = Authority(tmp_path_factory.mktemp("tls")).issue("one")
    return SECRETS | {"LONG": "x" * 20_000, "NOT_UTF8": "\udcff", "CERT": str(cert), "KEY": str(key)}


@pytest.mark.parametrize("file", INVALID, ids=lambda its: its.stem)
def test_a_file_with_one_fault_is_refused_for_that_fault(file: Path, environ: Mapping[str, str]) -> None:
    expected = re.fullmatch(r"# line (\d+): (.+)", file.read_bytes().split(b"\n", 1)[0].decode())
    assert expected is not None
    with pytest.raises(ConfigError) as caught:
        load(file, environ=environ)
    problems = caught.value.problems
    assert len(problems) == 1, [str(problem) for problem in problems]
    problem = problems[0]
    assert expected[2] in problem.message
    assert problem.line == int(expected[1]), str(problem)
    assert problem.file == str(file)
    assert not any(secret in str(problem) for secret in SECRETS.values() if len(secret) > 5)


@pytest.mark.parametrize("file", VALID, ids=lambda its: its.stem)
def test_a_valid_file_loads(file: Path, environ: Mapping[str, str]) -> None:
    assert load(file, environ=environ).policy.rules


def test_the_corpora_are_there() -> None:
    assert len(INVALID) > 190
    assert VALID


# --- every message has a file -----------------------------------------------------------------------------------------

MODULES = [
    *Path(str(config.__file__)).parent.glob("*.py"),
    *(Path(str(its.__file__)) for its in (condition, headers, hosts, trie)),
]
TOLD_ELSEWHERE = {
    "cannot be understood": "nothing leads there: what has no problem has a shape",
    " bytes: split hosts over several services": "a file of megabytes: test_document.py",
    " values: write fewer aliases": "seconds of work: test_load.py",
    "not valid yaml: an unpaired surrogate": "no file that is utf-8 has one: test_document.py",
    "not a valid expression: an unpaired surrogate": "no file that is utf-8 has one: test_condition.py",
}


def messages(tree: ast.AST) -> Iterator[str]:
    """Yield the longest fixed words of each message for the operator."""
    for node in ast.walk(tree):
        found: list[ast.expr] = []
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name == "ValueError":
                found = node.args[:1]
            elif name in {"add", "error"}:
                found = node.args[1:2]
            elif name == "ConfigProblem":
                found = [its.value for its in node.keywords if its.arg == "message"]
        elif isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in {"text", "message"}:
            found = [node.value] if isinstance(node.value, ast.JoinedStr | ast.Constant) else []
        for its in found:
            words = [
                part.value for part in ast.walk(its) if isinstance(part, ast.Constant) and isinstance(part.value, str)
            ]
            longest = max(words, key=len, default="")
            if len(longest) > 8:
                yield longest


def test_every_message_has_a_file(environ: Mapping[str, str]) -> None:
    """The files are as many as the ways to be wrong: a new message needs one."""
    told = []
    for file in INVALID:
        with pytest.raises(ConfigError) as caught:
            load(file, environ=environ)
        told += [problem.message for problem in caught.value.problems]
    known = {words for path in MODULES for words in messages(ast.parse(path.read_text()))}
    assert len(known) > 110
    missing = {words for words in known if not any(words in message for message in told)}
    assert missing == TOLD_ELSEWHERE.keys()


# --- what editors are told --------------------------------------------------------------------------------------------

BEYOND_SCHEMA: dict[str, str] = {
    "what a name or a text means": """
        claim_place_bad cors_origin_null cors_origin_path cors_origin_unparsable host_capture_number host_ipv6
        host_odd host_port host_star_alone host_star_inside http_proxy_bad identity_name_bad identity_name_host
        identity_template_brace identity_template_non_ascii identity_template_slot internal_url_query
        internal_url_user introspection_endpoint_http issuer_no_url issuer_plain_http issuer_port issuer_unparsable
        methods_bad methods_lower path_capture_number path_capture_twice path_dots path_escape path_invisible
        path_mixed path_no_slash path_query path_star path_stars_inside path_too_long path_too_many_steps
        response_header_framing response_header_value rule_groups_star rule_networks_bad rule_roles_colons
        rule_roles_no_client rule_roles_no_role rule_scopes_in_one_text rule_when_not_bool rule_when_syntax
        rule_when_unknown_member rule_networks_word http_proxy_with_a_password issuer_odd_host
        rule_when_unknown_variable server_address server_address_name server_http_unix server_unix_relative
        token_in_cookie_name token_in_header_authorization token_in_host
        """,
    "how long a duration is, once it is written as a text": """
        keys_refresh_too_short leeway_too_long leeway_too_long_text
        """,
    "what two parts of one mapping say together": """
        algorithm_hs_beside_jwks answer_content_type_alone answer_location_without_redirect
        answer_redirect_without_location answer_status answer_status_unknown answer_location_template
        server_grace_short authorization_replace_anyone cors_any_with_credentials http_cert_without_key
        http_proxy_and_cert introspection_mtls_no_cert
        introspection_no_endpoint introspection_no_secret introspection_two_ways
        keys_max_stale_short keys_two_sources rule_allow_and_require rule_allow_and_tokens rule_any_of_beside
        rule_no_one rule_optional_without_provider rule_require_only rule_tokens_only secret_with_rs256
        rule_client_ids_all rule_networks_all server_workers_unix
        """,
    "what stands elsewhere in the file, or twice": """
        cors_host_twice guard_names_twice host_twice hosts_everywhere hosts_needless hosts_twice hosts_without_rules
        identity_name_twice identity_not_in_list identity_two_providers methods_twice path_twice
        response_header_twice rule_any_of_same_issuer rule_conflict rule_conflict_captures rule_conflict_everywhere
        rule_hides rule_names_twice rule_roles_twice rule_two_introspect rule_unknown_provider
        rule_when_unknown_capture server_address_twice token_in_identity_header token_in_twice
        """,
    "what stands outside the file": """
        answer_body_too_long env_not_utf8 http_ca_broken server_tls_no_pair file_reference_elsewhere http_ca_bad
        http_ca_missing http_client_cert_bad introspection_private_key_bad keys_inline_empty keys_pem_broken
        reference_inside_text rule_when_too_long secret_file_empty secret_file_missing secret_file_not_utf8
        secret_file_too_large secret_not_set secret_short server_tls_client_ca_bad server_tls_missing
        server_tls_not_a_pair
        """,
    "what is no yaml as we read it, so that there is no value": """
        number_too_long yaml_alias_in_itself yaml_alias_unknown yaml_tab yaml_control yaml_duplicate_key
        yaml_key_no_text yaml_merge_key yaml_nested yaml_not_utf8 yaml_number_infinite yaml_second_document
        yaml_syntax yaml_tag yaml_zero_byte
        """,
}
"""What a JSON Schema cannot know. All else is about shape: an unknown key, a wrong type, a missing key, a bad word."""


VALIDATOR = jsonschema.Draft202012Validator(json_schema())


def is_refused_by_schema(file: Path) -> bool:
    try:
        value = parse_document(file.read_text(encoding="utf-8"), file=str(file)).value
    except (ConfigError, UnicodeDecodeError):
        return False
    return not VALIDATOR.is_valid(value)


def test_a_fault_of_shape_is_seen_by_editors_too() -> None:
    beyond = [name for names in BEYOND_SCHEMA.values() for name in names.split()]
    assert len(set(beyond)) == len(beyond)
    passed = {file.stem for file in INVALID if not is_refused_by_schema(file)}
    assert passed - set(beyond) == set(), "the schema lets through what it could know"
    assert set(beyond) - passed == set(), "the schema knows more than is said here"


@pytest.mark.parametrize("file", VALID, ids=lambda its: its.stem)
def test_the_schema_takes_what_loads(file: Path) -> None:
    assert not is_refused_by_schema(file)
