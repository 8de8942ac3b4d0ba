"""Lines for a terminal that no token, path or claim can steer."""

from __future__ import annotations

import click


def print_plain(text: str, *, err: bool = False) -> None:
    """Print lines of text."""
    for line in text.split("\n"):
        click.echo(plain(line), err=err)


def plain(text: str) -> str:
    """Return a text that does nothing to a terminal, whoever wrote it."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
