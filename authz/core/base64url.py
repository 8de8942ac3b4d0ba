"""Base64url without padding, in its one canonical spelling (RFC 7515 §2, RFC 4648 §3.5 and §5)."""

from __future__ import annotations

import base64
import binascii
from typing import Final

_ALPHABET: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
_TO_STANDARD: Final = bytes(
    b"+/"[b"-_".index(octet)] if octet in b"-_" else octet if octet in _ALPHABET else ord("!") for octet in range(256)
)
"""Turns ``-_`` into ``+/`` and everything outside the alphabet, ``+/=`` too, into what no decoder accepts."""

_LAST_OF_TWO: Final = frozenset(_ALPHABET[::16])
_LAST_OF_THREE: Final = frozenset(_ALPHABET[::4])


def parse_base64url(text: str) -> bytes:
    """Decode, refusing padding, line breaks, other alphabets and bits left over: one value has one spelling.

    Raises:
        ValueError: without the text, which may be secret.

    """
    try:
        raw = text.encode("ascii")
    except UnicodeEncodeError:
        raise ValueError("no base64url") from None
    rest = len(raw) % 4
    if rest == 1 or (rest == 2 and raw[-1] not in _LAST_OF_TWO) or (rest == 3 and raw[-1] not in _LAST_OF_THREE):  # noqa: PLR2004 - characters in the last group
        raise ValueError("no canonical base64url")
    try:
        return binascii.a2b_base64(raw.translate(_TO_STANDARD) + b"=" * (-rest % 4), strict_mode=True)
    except binascii.Error:
        raise ValueError("no base64url") from None


def render_base64url(raw: bytes) -> str:
    """Encode without padding."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")
