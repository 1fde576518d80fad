"""Files that appear whole or not at all."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a path to write to; what was written there becomes `path` at the end.

    Nothing of it is left after an error. Several processes may do it at once, on
    several hosts too: the last one's file stays.
    """
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".writing-") as scratch:
        part = Path(scratch) / path.name
        yield part
        os.replace(part, path)
