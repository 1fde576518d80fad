"""The exception that means "your input, not our bug"."""

import difflib
from collections.abc import Iterable


class FlaxcnnError(Exception):
    """Bad input, told in one line: the thing, what is wrong with it, and the cure.

    The command line prints the message alone and exits non-zero; any other
    exception is a bug and keeps its traceback.
    """

    def __str__(self) -> str:  # a path that it names may have a line break
        return "\\n".join(super().__str__().splitlines())


class DivergedError(FlaxcnnError):
    """Training whose loss or parameters are not finite.

    Attributes:
      step: by which they were not.
    """

    def __init__(self, message: str, step: int):
        super().__init__(message)
        self.step = step


def unknown(kind: str, name: str, known: Iterable[str]) -> FlaxcnnError:
    """The error for a name that is not in `known`, with the nearest names."""
    known = sorted(known)
    near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
    cure = f"did you mean {' or '.join(near)}?" if near else f"known: {_some(known)}"
    return FlaxcnnError(f"unknown {kind} {name!r}; {cure}")


def reason(error: Exception) -> str:
    """An exception in one line of at most 200 characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _some(names: list[str]) -> str:
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
