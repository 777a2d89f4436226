"""The errors that a user can act on; the command line prints them as one line."""

from collections.abc import Iterable


class ConvertError(Exception):
    """A conversion that cannot be done as asked: the message names the file, tensor or option and what was found there."""


def listing(names: Iterable[str], limit: int = 20) -> str:
    """`a, b, c (and 7 more)`."""
    ordered = list(names)
    shown = ", ".join(ordered[:limit])
    return shown if len(ordered) <= limit else f"{shown} (and {len(ordered) - limit} more)"
