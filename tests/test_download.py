"""Downloads from a local server: in whole or not at all, verified, soon given up."""

import hashlib
import http.server
import io
import socket
import sys
import threading
import time

import numpy as np
import pytest

from flaxcnn import download
from flaxcnn.download import RemoteFile
from flaxcnn.errors import FlaxcnnError
from flaxcnn.weights import catalog
from flaxcnn.weights.catalog import Weights, fetch_weights

CONTENT = np.random.default_rng(0).integers(0, 256, 3_000_000, np.uint8).tobytes()
SHA = hashlib.sha256(CONTENT).hexdigest()
OTHER = CONTENT[:-1] + b"?"
CURE = "do this instead"


class Server(http.server.ThreadingHTTPServer):
    """Shows `files`: {path: (content, headers)}; keeps the paths asked for."""

    def __init__(self):
        self.files = {}
        self.asked = []
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"

    def put(self, name, content=CONTENT, **headers):
        headers = {"Content_Length": len(content), **headers}
        self.files[f"/{name}"] = content, headers
        return f"{self.url}/{name}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        if self.path not in self.server.files:
            self.send_error(404)
            return
        content, headers = self.server.files[self.path]
        self.send_response(200)
        for key, value in headers.items():
            if value is not None:
                self.send_header(key.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def one_line(call, *arguments):
    with pytest.raises(FlaxcnnError) as caught:
        call(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


def failed(remote, file):
    """The message of a failed download, which leaves nothing."""
    message = one_line(download.fetch, remote, file, CURE)
    assert message.startswith(f"cannot download {remote.url} (")
    assert message.endswith(f"); {CURE}")
    assert not list(file.parent.iterdir())
    return message


@pytest.mark.parametrize("size", [len(CONTENT), None])
@pytest.mark.parametrize("sha256", [SHA, SHA[:8]])
def test_a_file_is_downloaded_once(server, tmp_path, size, sha256):
    remote = RemoteFile(server.put("a.bin"), sha256, size)
    file = tmp_path / "new" / "place" / "a.bin"
    assert download.fetch(remote, file, CURE) == file
    assert file.read_bytes() == CONTENT
    assert [p.name for p in file.parent.iterdir()] == ["a.bin"]
    assert download.fetch(remote, file, CURE) == file
    assert server.asked == ["/a.bin"]


@pytest.mark.parametrize("sha256", [SHA, SHA[:10]])
def test_another_file_is_refused(server, tmp_path, sha256):
    found = hashlib.sha256(OTHER).hexdigest()[: len(sha256)]
    told = f"sha256 {found}, expected {sha256}: damaged or another file"
    remote = RemoteFile(server.put("a.bin", OTHER), sha256)
    file = tmp_path / "new" / "a.bin"
    assert told in failed(remote, file)

    file.write_bytes(OTHER)
    expected = f"{file}: {told}; delete it and run again"
    assert one_line(download.fetch, remote, file, CURE) == expected
    assert file.read_bytes() == OTHER


@pytest.mark.parametrize("size", [len(CONTENT), None])
def test_a_connection_cut_short(server, tmp_path, size):
    url = server.put("a.bin", CONTENT[:-1000], Content_Length=len(CONTENT))
    message = failed(RemoteFile(url, SHA, size), tmp_path / "new" / "a.bin")
    assert "2,999,000 bytes, expected 3,000,000: truncated" in message


def test_no_length_at_all(server, tmp_path):
    file = tmp_path / "new" / "a.bin"
    url = server.put("a.bin", CONTENT[:-1000], Content_Length=None)
    assert "damaged" in failed(RemoteFile(url, SHA), file)
    url = server.put("a.bin", Content_Length=None)
    assert download.fetch(RemoteFile(url, SHA), file, CURE).read_bytes() == CONTENT


def test_a_web_page_or_nothing_in_its_place(server, tmp_path):
    file = tmp_path / "new" / "a.bin"
    url = server.put("a.bin", b"<html>", Content_Type="text/html; charset=utf-8")
    assert "a web page came" in failed(RemoteFile(url, SHA), file)
    assert "404" in failed(RemoteFile(f"{server.url}/b.bin", SHA), file)


def test_a_stalled_server_is_given_up(server, tmp_path, monkeypatch):
    release = threading.Event()
    write = Handler.end_headers
    monkeypatch.setattr(
        Handler, "end_headers", lambda self: (write(self), release.wait(20))
    )
    monkeypatch.setattr(download, "STALL_SECONDS", 0.3)
    remote = RemoteFile(server.put("a.bin"), SHA)
    assert "timed out" in failed(remote, tmp_path / "new" / "a.bin")
    release.set()


def test_an_interrupted_download_leaves_nothing(server, tmp_path, monkeypatch):
    def interrupted(response, stream, remote):
        stream.write(response.read(1000))
        raise KeyboardInterrupt

    monkeypatch.setattr(download, "_copy", interrupted)
    remote = RemoteFile(server.put("a.bin"), SHA)
    with pytest.raises(KeyboardInterrupt):
        download.fetch(remote, tmp_path / "new" / "a.bin", CURE)
    assert not list((tmp_path / "new").iterdir())


def test_what_cannot_be_written_or_read(server, tmp_path):
    remote = RemoteFile(server.put("a.bin"), SHA)
    (tmp_path / "file").write_text("where a directory must go")
    place = tmp_path / "file" / "a.bin"
    assert str(tmp_path / "file") in one_line(download.fetch, remote, place, CURE)
    message = one_line(download.fetch, remote, tmp_path, CURE)
    assert f"{tmp_path}: cannot be read (Is a directory)" in message


@pytest.mark.parametrize(("length", "total"), [(len(CONTENT), " of 2"), (None, "")])
def test_progress_on_a_terminal(server, tmp_path, monkeypatch, length, total):
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    url = server.put("a.bin", Content_Length=length)
    download.fetch(RemoteFile(url, SHA), tmp_path / "a.bin", CURE)
    text = "".join(f"\ra.bin: {done}{total} MB" for done in (1, 2, 2))
    assert terminal.getvalue() == text + "\n"


def test_no_progress_elsewhere(server, tmp_path, capfd):
    download.fetch(RemoteFile(server.put("a.bin"), SHA), tmp_path / "a.bin", CURE)
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def torch_cache(tmp_path, monkeypatch):
    """Where torch keeps its copies; none yet."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    (tmp_path / "torch" / "hub" / "checkpoints").mkdir(parents=True)
    return tmp_path / "torch" / "hub" / "checkpoints"


@pytest.fixture
def published(server, torch_cache, monkeypatch):
    """A function that publishes a file of this content: its row of a catalogue."""
    monkeypatch.setitem(catalog.DIRECTORIES, "imagenet", server.url)

    def publish(version="V1", content=CONTENT):
        sha256 = hashlib.sha256(content).hexdigest()
        file = f"tiny_top-1-{sha256[:8]}.pth"
        server.put(file, content)
        return Weights("tiny", version, file, None, None)

    return publish


def test_weights_are_kept_by_version(server, published, tmp_path):
    first, second = published("V2"), published("V1", OTHER)
    ours = tmp_path / "cache" / "flaxcnn" / "weights"
    for _ in range(2):
        assert fetch_weights(first) == ours / first.file
        assert fetch_weights(second) == ours / second.file
    assert (ours / first.file).read_bytes() == CONTENT
    assert (ours / second.file).read_bytes() == OTHER
    assert len(list(ours.iterdir())) == 2
    assert server.asked == [f"/{first.file}", f"/{second.file}"]


def test_the_copy_of_torch_is_used(server, published, torch_cache, monkeypatch):
    weights = published()
    (torch_cache / weights.file).write_bytes(CONTENT)
    assert fetch_weights(weights) == torch_cache / weights.file

    monkeypatch.delenv("TORCH_HOME")
    default = torch_cache.parents[2] / "cache" / "torch" / "hub" / "checkpoints"
    default.mkdir(parents=True)
    (torch_cache / weights.file).rename(default / weights.file)
    assert fetch_weights(weights) == default / weights.file
    assert server.asked == []


@pytest.mark.parametrize("whose", ["torch", "ours"])
def test_a_damaged_copy_is_never_used(server, published, torch_cache, whose):
    weights = published()
    ours = torch_cache.parents[2] / "cache" / "flaxcnn" / "weights"
    file = (torch_cache if whose == "torch" else ours) / weights.file
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(OTHER)
    message = one_line(fetch_weights, weights)
    assert message.startswith(f"{file}: sha256 ")
    assert f"expected {weights.sha256}: damaged" in message
    assert message.endswith("; delete it and run again")
    assert server.asked == []


def test_weights_offline(torch_cache, tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setitem(catalog.DIRECTORIES, "imagenet", url)
    started = time.monotonic()
    message = one_line(fetch_weights, Weights("tiny", "V1", "a-01.pth", None, None))
    assert time.monotonic() - started < 5
    assert message.startswith(f"cannot download {url}/a-01.pth (")
    assert "refused" in message
    ours = tmp_path / "cache" / "flaxcnn" / "weights"
    assert f"put a-01.pth into {ours} by hand" in message
    assert "or give a path of your own" in message
    assert not list(ours.iterdir())
