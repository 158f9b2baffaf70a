"""What a person gives a program, a config, and the errors that the program tells that person in one line.

This imports no library, so that a wrong word on the command line is told at once.
"""

from typing import Any

Config = Any  # an ml_collections.ConfigDict; a type checker does not know its attributes


def printable(text: str, but: str = "") -> str:
    """The text with control characters, line breaks and other unprintable characters escaped, except those in `but`.

    A name from outside may hold any of them, and a terminal obeys some.
    """
    return "".join(c if c.isprintable() or c in but else c.encode("unicode_escape").decode() for c in text)


class BadInput(ValueError):
    """What the user gave cannot be used; the message is one line with the value, the limit and the cure.

    Whatever a name in the message holds, a terminal shows it and does not obey it.
    """

    everywhere = False
    """Whether all processes of the run raise it together."""

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(message, but="\n\t"))


class Diverged(RuntimeError):
    """The run is ill and no rescue is left, or none can help; the message is one line."""
