"""The trial's realm is one that Keycloak imports, and its tokens are what the development rules ask for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from click.testing import CliRunner, Result

from authz.cli import main
from tests.keycloak.server import Keycloak, missing
from tests.manifests.render import MANIFESTS
from tests.parts import lacking

REALM: Final = MANIFESTS / "keycloak/shop-realm.json"
ADDRESS: Final = "http://keycloak.keycloak.svc.cluster.local:8080"
NAMED: Final = re.findall(r"\$\{(\w+)\}", REALM.read_text())


def secret(name: str) -> str:
    """Return a trial's secret: any text does."""
    return f"trial-{name.lower()}"


def test_no_secret_stands_in_the_realm() -> None:
    realm = json.loads(REALM.read_text())
    told = [its["secret"] for its in realm["clients"] if not its["publicClient"]]
    told += [credential["value"] for user in realm["users"] for credential in user.get("credentials", ())]
    assert len(told) == 5
    assert all(re.fullmatch(r"\$\{\w+\}", its) for its in told)


def test_every_secret_of_the_realm_comes_from_the_trials_secret() -> None:
    """And docs/kubernetes.md makes it with just these keys."""
    documents = yaml.safe_load_all((MANIFESTS / "keycloak/keycloak.yaml").read_text())
    (deployment,) = (its for its in documents if its["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    sources = {its["name"]: its["valueFrom"]["secretKeyRef"] for its in container["env"] if "valueFrom" in its}
    assert set(NAMED) <= sources.keys()
    assert {its["name"] for its in sources.values()} == {"keycloak-trial"}
    text = (MANIFESTS.parent / "docs/kubernetes.md").read_text()
    made = re.search(r"generic keycloak-trial \\\n((?:  --from-literal=.*\n)+)", text)
    assert made is not None
    keys = re.findall(r"--from-literal=([\w-]+)=", made[1])
    assert set(keys) == {its["key"] for its in sources.values()}


@pytest.fixture(scope="module")
def keycloak() -> Iterator[Keycloak]:
    lack = missing()
    if lack is not None:
        lacking("Keycloak", lack)
    with pytest.MonkeyPatch.context() as environ:
        for name in NAMED:
            environ.setenv(name, secret(name))
        with Keycloak(realm_files=(REALM,)) as running:
            yield running


@pytest.fixture
def rules(keycloak: Keycloak, tmp_path: Path) -> Path:
    """Return the development rules; only Keycloak's address and the secret's place differ from the cluster's."""
    text = (MANIFESTS / "overlays/development/rules.yaml").read_text()
    assert ADDRESS in text
    (tmp_path / "orders-api").write_text(secret("ORDERS_API_SECRET"))
    file = tmp_path / "rules.yaml"
    file.write_text(text.replace(ADDRESS, keycloak.base_url).replace("/etc/authz-secrets", str(tmp_path)))
    return file


def check(rules: Path, token: str, path: str) -> Result:
    curl = f"curl -H 'authorization: Bearer {token}' http://shop.example.com{path}"
    arguments = ["check", str(rules), "--online", "--json", "--curl", curl]
    return CliRunner().invoke(main, arguments, catch_exceptions=False)


CASES: Final[dict[str, tuple[str, str | None, str, str]]] = {
    "a reader reads": ("web", "alice", "/orders/7", ""),
    "a reader does not administrate": ("web", "alice", "/orders/admin/x", "role_missing"),
    "an administrator does": ("web", "adam", "/orders/admin/x", ""),
    "nobody in particular reads nothing": ("web", "bob", "/orders/7", "role_missing"),
    "a group counts": ("web", "alice", "/staff/rota", ""),
    "and who is not in it is not": ("web", "adam", "/staff/rota", "group_missing"),
    "a lightweight token is asked about": ("web-light", "alice", "/staff/rota", ""),
    "with the same answer": ("web-light", "bob", "/orders/7", "role_missing"),
    "a service reads": ("svc", None, "/orders/7", ""),
    "and does not administrate": ("svc", None, "/orders/admin/x", "role_missing"),
}


@pytest.mark.keycloak
@pytest.mark.timeout(1_500)
@pytest.mark.parametrize("what", CASES)
def test_tokens_of_the_trials_realm(what: str, keycloak: Keycloak, rules: Path) -> None:
    client, user, path, reason = CASES[what]
    given: dict[str, Any] = {"secret": secret("SVC_SECRET")} if user is None else {}
    if user is not None:
        given = {"username": user, "password": secret(f"{user.upper()}_PASSWORD")}
    token = keycloak.token(client, **given)["access_token"]
    done = check(rules, token, path)
    assert done.exit_code == (1 if reason else 0), done.output
    assert (json.loads(done.stdout).get("reason") or "") == reason


@pytest.mark.keycloak
@pytest.mark.timeout(1_500)
def test_the_introspecting_client_is_in_the_tokens_audience(keycloak: Keycloak, rules: Path, tmp_path: Path) -> None:
    token = keycloak.token("web", username="alice", password=secret("ALICE_PASSWORD"))["access_token"]
    (tmp_path / "token").write_text(token)
    arguments = ["validate", "--online", "--token-file", str(tmp_path / "token"), str(rules)]
    done = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
