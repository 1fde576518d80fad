"""Published files: downloaded in whole or not at all, and verified."""

import dataclasses
import hashlib
import http.client
import os
import sys
import threading
import urllib.request
from pathlib import Path
from typing import Any, BinaryIO

from flaxcnn.atomic import replacing
from flaxcnn.errors import FlaxcnnError

CONNECT_SECONDS = 8
STALL_SECONDS = 30
BLOCK = 1 << 20


@dataclasses.dataclass(frozen=True)
class RemoteFile:
    """A published file.

    Attributes:
      url: where it is.
      sha256: its hex digits, or the first of them.
      size: in bytes; None: not published.
    """

    url: str
    sha256: str
    size: int | None = None

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[-1]


def fetch(remote: RemoteFile, file: Path, cure: str) -> Path:
    """`file`, verified; downloaded first if it is missing.

    It appears in one step, complete; a failed download leaves nothing.

    Args:
      remote: what it has to be.
      file: where it belongs.
      cure: ends the message of a failed download: what to do instead.

    Raises:
      FlaxcnnError: no network (told after 8 seconds), or a wrong size or sha256.
    """
    if os.path.exists(file):  # Path.exists raises where a directory is not readable
        if wrong := _wrong(remote, file):
            raise FlaxcnnError(f"{file}: {wrong}; delete it and run again")
        return file
    try:
        _download(remote, file)
    except (OSError, http.client.HTTPException) as error:
        raise FlaxcnnError(f"cannot download {remote.url} ({error}); {cure}") from error
    return file


def _download(remote: RemoteFile, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as part:
        with _connect(remote.url) as response, part.open("wb") as stream:
            if response.headers.get_content_type() == "text/html":
                raise OSError("a web page came instead of the file")
            if remote.size is None:  # Content-Length: it tells a truncated file
                remote = dataclasses.replace(remote, size=response.length)
            _copy(response, stream, remote)
        if wrong := _wrong(remote, part):
            raise OSError(wrong)


def _copy(response: Any, stream: BinaryIO, remote: RemoteFile) -> None:
    """Copy what comes, with progress on a terminal."""
    show = sys.stderr.isatty()
    total = f" of {remote.size >> 20}" if remote.size is not None else ""
    try:
        while block := response.read(BLOCK):
            stream.write(block)
            if show:
                done = f"{stream.tell() >> 20}{total} MB"
                print(f"\r{remote.name}: {done}", end="", file=sys.stderr)
    finally:
        if show:
            print(file=sys.stderr)


def _connect(url: str) -> Any:
    """`urlopen`, but at most 8 seconds: no timeout of sockets bounds a name lookup."""
    answers: list[Any] = []

    def connect() -> None:
        try:
            answers.append(urllib.request.urlopen(url, timeout=STALL_SECONDS))
        except Exception as error:
            answers.append(error)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(CONNECT_SECONDS)
    if not answers:
        raise TimeoutError(f"no answer in {CONNECT_SECONDS} seconds")
    if isinstance(answers[0], Exception):
        raise answers[0]
    return answers[0]


def _wrong(remote: RemoteFile, file: Path) -> str:
    """What is wrong with the file; empty if it is the published one."""
    try:
        size = file.stat().st_size
        if remote.size not in (None, size):
            expected = f"{remote.size:,}"
            return f"{size:,} bytes, expected {expected}: truncated or another file"
        with file.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    sha256 = sha256[: len(remote.sha256)]
    if sha256 != remote.sha256:
        return f"sha256 {sha256}, expected {remote.sha256}: damaged or another file"
    return ""
