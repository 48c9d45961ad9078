"""The one kind of error that a user's input may cause."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input. The command line prints it as one message and exits with code 2."""


def nearest(name: str, names: Iterable[str]) -> str:
    """`", did you mean 'x'?"` for the valid name closest to `name`, or `""` if none is close."""
    close = difflib.get_close_matches(str(name), [str(valid) for valid in names], n=1)
    return f", did you mean {close[0]!r}?" if close else ""
