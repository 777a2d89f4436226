"""`tqn serve`: models over HTTP, for programs and for the page at /."""

from ..server.command import add_arguments, run

__all__ = ["add_arguments", "run"]
