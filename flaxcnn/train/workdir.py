"""The directory of a run: whose it is, and what it says."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from flaxcnn.atomic import replacing
from flaxcnn.errors import FlaxcnnError
from flaxcnn.train.config import default_config, flatten

# What may differ between a run and its continuation.
FREE_KEYS = ("data.dir", "log_every", "checkpoint_every", "keep", "resume")
LONGEST = 200  # bytes of a directory's name; file systems take 255


def check_workdir(workdir: Path, config: ConfigDict) -> None:
    """Raises FlaxcnnError if the run cannot go there, before anything is written."""
    # Path.exists raises where a directory is not readable.
    existing = next(p for p in (workdir, *workdir.parents) if os.path.exists(p))
    if not (existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)):
        raise FlaxcnnError(
            f"{existing} is no directory to write to; choose another --workdir"
        )
    path = workdir / "config.json"
    if not path.exists():
        return
    if not config.resume:
        raise FlaxcnnError(
            f"{workdir} holds a run already; continue it with --config.resume=true, "
            "or choose another --workdir"
        )
    try:
        # A key that is younger than the run had its default.
        old = {**_plain(default_config()), **json.loads(path.read_text())}
    except ValueError as error:
        raise FlaxcnnError(f"{path} is damaged ({error}); delete it") from error
    new = _plain(config)
    differences = [
        f"{key}: {old.get(key)!r} there, {new.get(key)!r} now"
        for key in sorted({*old, *new} - {*FREE_KEYS})
        if old.get(key) != new.get(key)
    ]
    if differences:
        raise FlaxcnnError(
            f"{workdir} belongs to a run of another config ({'; '.join(differences)}); "
            "choose another --workdir"
        )


def _plain(config: ConfigDict) -> dict[str, Any]:
    """As it comes back from a file."""
    return json.loads(json.dumps(flatten(config)))


def write_config(workdir: Path, config: ConfigDict) -> None:
    """Makes the directory and its config.json, for `check_workdir` and the reader."""
    workdir.mkdir(parents=True, exist_ok=True)
    text = json.dumps(flatten(config), indent=1) + "\n"
    replace_file(workdir / "config.json", text)


def replace_file(path: Path, text: str) -> None:
    """Writes a file whole or not at all; its line ends as they are in the text."""
    with replacing(path) as part, part.open("w", newline="") as file:
        file.write(text)


def default_workdir(config_spec: str, overrides: dict[str, str]) -> Path:
    """runs/<config>[-<argument>][,<key>=<value>...]: one for every command.

    What is too long for a file system is cut, and ends in a hash of all of it.
    """
    path, _, argument = config_spec.partition(":")
    given = [f"{k}={v}" for k, v in overrides.items() if k not in FREE_KEYS]
    name = Path(path).stem + (f"-{argument}" if argument else "")
    name = ",".join([name, *given]).replace("/", "_").replace(" ", "_")
    if len(os.fsencode(name)) > LONGEST:
        digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:8]
        name = f"{os.fsencode(name)[: LONGEST - 9].decode(errors='ignore')},{digest}"
    return Path("runs") / name


def shown(path: Path) -> Path:
    """The path as one would type it from here."""
    for place, name in ((Path.cwd(), ""), (Path.home(), "~")):
        if path.is_relative_to(place):
            return name / path.relative_to(place)
    return path
