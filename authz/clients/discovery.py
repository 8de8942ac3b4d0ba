"""Where a provider says its endpoints are: OpenID Connect Discovery 1.0 §4, which RFC 8414 shares.

The document's ``issuer`` must be the configured one, exactly (§4.3). With ``internal_url`` it may name either of the
two, and every address under the issuer is called under ``internal_url`` instead. An address that would lead from
``https`` down to ``http`` is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from authz.cache import SingleFlight
from authz.clients.http import HttpClient, render_place
from authz.core.path import parse_host
from authz.core.strictjson import parse_object
from authz.model import Provider, ProviderError, Reason, Rejected


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoints:
    """The addresses to call, ``internal_url`` already put in."""

    jwks: str | None
    introspection: str | None


class Discovery:
    """One provider's discovery document, and what was last read of it (invariant LAST-GOOD)."""

    def __init__(self, provider: Provider, url: str, *, http: HttpClient) -> None:
        self._provider = provider
        self._url = url
        self._http = http
        self._last: Endpoints | None = None
        self._flight: SingleFlight[str, Endpoints] = SingleFlight()

    async def fetch(self, *, anew: bool) -> Endpoints:
        """Return the endpoints; with ``anew`` ask again, and fall back to what was known.

        Raises:
            ProviderError: nothing is known, and the provider gave no usable document.

        """
        if self._last is not None and not anew:
            return self._last
        try:
            self._last = await self._flight.run(self._url, self._fetch)
        except ProviderError:
            if self._last is None:
                raise
        return self._last

    async def close(self) -> None:
        """End what is under way."""
        await self._flight.close()

    async def _fetch(self) -> Endpoints:
        raw = await self._http.fetch(self._url)
        try:
            document = parse_object(raw, reason=Reason.PROVIDER_ANSWER)
        except Rejected as error:
            raise self._error(error.detail) from None
        issuer = document.get("issuer")
        expected = {self._provider.issuer}
        if self._provider.internal_url is not None:
            expected |= {self._provider.internal_url, self._provider.internal_url.rstrip("/")}
        if not isinstance(issuer, str) or issuer not in expected:
            shown = f"`{ascii(issuer)[1:-1][:200]}`" if isinstance(issuer, str) else "none"
            raise self._error(f"its issuer is {shown}, not `{self._provider.issuer}`: correct `issuer`")
        return Endpoints(
            jwks=self._address(document, "jwks_uri"), introspection=self._address(document, "introspection_endpoint")
        )

    def _address(self, document: dict[str, Any], name: str) -> str | None:
        address = document.get(name)
        if address is None:
            return None
        if not isinstance(address, str):
            raise self._error(f"`{name}` is no text")
        internal = self._provider.internal_url
        if internal is not None:
            issuer, internal = self._provider.issuer.rstrip("/"), internal.rstrip("/")
            if address.startswith(f"{issuer}/"):
                return internal + address.removeprefix(issuer)
            if not address.startswith(f"{internal}/"):
                raise self._error(f"`{name}` is under neither `issuer` nor `internal_url`: write its url yourself")
        if not address.startswith("https://") and (
            self._url.startswith("https://") or not address.startswith("http://")
        ):
            raise self._error(f"`{name}` is not https")
        try:
            parse_host(urlsplit(address).netloc)
        except (Rejected, ValueError):
            raise self._error(f"`{name}` is no url that can be called") from None
        return address

    def _error(self, why: str) -> ProviderError:
        return ProviderError(Reason.PROVIDER_ANSWER, f"{render_place(self._url)}: unusable discovery document: {why}")
