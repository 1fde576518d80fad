"""Preparation without TensorFlow, from tiny archives of the official formats."""

import gzip
import hashlib
import http.server
import io
import socket
import struct
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from flaxcnn import download
from flaxcnn.data import builders
from flaxcnn.data.builders import prepare
from flaxcnn.data.sources import as_arrays, load_source
from flaxcnn.download import RemoteFile
from flaxcnn.errors import FlaxcnnError

tfds = pytest.importorskip("tensorflow_datasets")

TRAIN, TEST = 20, 10
NAMES10 = ["airplane", "automobile", "bird", "cat", "deer"]
NAMES10 += ["dog", "frog", "horse", "ship", "truck"]
Put = Callable[[str, dict[str, bytes]], Path]


@pytest.fixture
def put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Put:
    """Puts archives by hand where `prepare` looks, and publishes their checksums."""

    def put(name: str, files: dict[str, bytes]) -> Path:
        directory = tmp_path / "downloads"
        directory.mkdir()
        for file, content in files.items():
            (directory / file).write_bytes(content)
        table = [
            RemoteFile(f"http://nowhere.invalid/a/{f}", _sha(c), len(c))
            for f, c in files.items()
        ]
        monkeypatch.setattr(builders, "_archives", {name: table}.__getitem__)
        return tmp_path

    return put


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _random(seed: int, n: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def _mnist_files() -> tuple[dict[str, bytes], np.ndarray, np.ndarray]:
    images = _random(0, TRAIN + TEST, 28, 28)
    labels = np.arange(TRAIN + TEST, dtype=np.uint8) % 10
    files = {}
    for prefix, part in ("train", slice(TRAIN)), ("t10k", slice(TRAIN, None)):
        n = len(labels[part])
        idx3 = struct.pack(">4I", 2051, n, 28, 28) + images[part].tobytes()
        idx1 = struct.pack(">2I", 2049, n) + labels[part].tobytes()
        files[f"{prefix}-images-idx3-ubyte.gz"] = gzip.compress(idx3)
        files[f"{prefix}-labels-idx1-ubyte.gz"] = gzip.compress(idx1)
    return files, images, labels


def _tar(directory: str, members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(f"{directory}/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def _cifar10_files() -> tuple[dict[str, bytes], np.ndarray, np.ndarray]:
    rows = _random(1, TRAIN + TEST, 3073)
    rows[:, 0] = np.arange(len(rows)) % 10
    members = {
        f"data_batch_{i + 1}.bin": rows[i * TRAIN // 5 : (i + 1) * TRAIN // 5].tobytes()
        for i in reversed(range(5))  # the official tarball is not in order either
    }
    members["batches.meta.txt"] = ("\n".join(NAMES10) + "\n\n").encode()
    members["test_batch.bin"] = rows[TRAIN:].tobytes()
    archive = _tar("cifar-10-batches-bin", members)
    images = rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return {"cifar-10-binary.tar.gz": archive}, images, rows[:, 0]


def _cifar100_files() -> tuple[dict[str, bytes], np.ndarray, np.ndarray]:
    rows = _random(2, TRAIN + TEST, 3074)
    rows[:, 0] = np.arange(len(rows)) % 20
    rows[:, 1] = np.arange(len(rows)) * 3
    members = {
        "coarse_label_names.txt": "".join(f"coarse_{i}\n" for i in range(20)).encode(),
        "fine_label_names.txt": "".join(f"fine_{i}\n" for i in range(100)).encode(),
        "train.bin": rows[:TRAIN].tobytes(),
        "test.bin": rows[TRAIN:].tobytes(),
    }
    archive = _tar("cifar-100-binary", members)
    images = rows[:, 2:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return {"cifar-100-binary.tar.gz": archive}, images, rows[:, 1]


@pytest.mark.parametrize(
    ("name", "version", "files"),
    [
        ("cifar10", "3.0.2", _cifar10_files),
        ("cifar100", "3.0.2", _cifar100_files),
        ("mnist", "3.0.1", _mnist_files),
    ],
)
def test_plain_tfds_reads_what_we_prepare_bit_by_bit(
    name: str, version: str, files: Callable, put: Put, capfd: pytest.CaptureFixture
) -> None:
    contents, images, labels = files()
    root = put(name, contents)
    assert prepare(name, root) == root / name / version
    assert capfd.readouterr() == ("", "")

    images = images.reshape(*images.shape[:3], -1)
    expected = {i.tobytes(): int(k) for i, k in zip(images, labels, strict=True)}
    found = {}
    official = tfds.data_source(name, data_dir=root)
    assert {s: len(d) for s, d in official.items()} == {"train": TRAIN, "test": TEST}
    for split, part in ("train", slice(TRAIN)), ("test", slice(TRAIN, None)):
        for example in official[split]:
            key = example["image"].tobytes()
            found[key] = example["label"]
            if name != "mnist":  # tfds's ids count within the split
                index = int(example["id"].decode().removeprefix(f"{split}_"))
                assert images[part][index].tobytes() == key
            if name == "cifar100":
                assert example["coarse_label"] == labels[part][index] // 3 % 20
    assert found == expected

    source = load_source(f"tfds:{name}", "test", data_dir=str(root))
    ours, our_labels = as_arrays(source)
    assert {i.tobytes(): k for i, k in zip(ours, our_labels, strict=True)} == {
        i.tobytes(): k for i, k in zip(images[TRAIN:], labels[TRAIN:], strict=True)
    }
    assert ours.shape[1:] == images.shape[1:]
    names = {"cifar10": NAMES10, "cifar100": [f"fine_{i}" for i in range(100)]}
    assert source.classes == tuple(names.get(name, map(str, range(10))))


def test_what_we_prepare_is_what_tfds_declares(put: Put) -> None:
    for name in builders.NAMES:
        assert tfds.builder_cls(name).VERSION in ("3.0.1", "3.0.2")
    root = put("cifar10", _cifar10_files()[0])
    prepared = tfds.builder_from_directory(prepare("cifar10", root))
    official = tfds.builder("cifar10", data_dir=root / "elsewhere")
    assert str(prepared.info.features) == str(official.info.features)
    assert prepared.info.full_name == official.info.full_name
    assert prepared.info.supervised_keys == official.info.supervised_keys


def test_published_archives() -> None:
    (cifar,) = builders._archives("cifar10")
    assert cifar.name == "cifar-10-binary.tar.gz"
    assert cifar.size == 170_052_171
    assert cifar.sha256.startswith("c4a38c50a1bc5f3a")
    assert [a.name for a in builders._archives("cifar100")] == [
        "cifar-100-binary.tar.gz"
    ]
    assert {a.name for a in builders._archives("mnist")} == set(_mnist_files()[0])


def test_loading_prepares_when_needed_and_only_once(
    put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = put("mnist", _mnist_files()[0])
    assert len(load_source("tfds:mnist", "train", data_dir=str(root))) == TRAIN
    monkeypatch.setattr(builders, "_build", None)  # a second call would fail
    assert len(load_source("tfds:mnist", "test", data_dir=str(root))) == TEST
    assert prepare("mnist", root) == root / "mnist" / "3.0.1"


def test_a_killed_preparation_leaves_nothing_to_read(
    put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = put("mnist", _mnist_files()[0])
    read = builders._mnist

    def killed(*args: object) -> Iterator[dict]:
        yield from list(read(*args))[:3]  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(builders, "_mnist", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare("mnist", root)
    assert not (root / "mnist" / "3.0.1").exists()
    # What SIGKILL leaves: tfds's temporary directory, even if it looks whole.
    left = root / "mnist" / "incomplete.ABCDEF_3.0.1"
    left.mkdir(parents=True)
    (left / "dataset_info.json").write_text("{}")
    assert len(load_source("tfds:mnist", "train", data_dir=str(root))) == TRAIN


def test_another_process_may_finish_first(
    put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = put("mnist", _mnist_files()[0])
    build = builders._build

    def slower(*args: object) -> None:
        build(*args)  # type: ignore[arg-type]
        raise OSError("Directory not empty")

    monkeypatch.setattr(builders, "_build", slower)
    assert prepare("mnist", root) == root / "mnist" / "3.0.1"


def _one_line(call: Callable[[], object]) -> str:
    with pytest.raises(FlaxcnnError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_an_incomplete_directory_is_named(put: Put) -> None:
    root = put("mnist", _mnist_files()[0])
    (root / "mnist" / "3.0.1").mkdir(parents=True)
    message = _one_line(lambda: prepare("mnist", root))
    assert str(root / "mnist" / "3.0.1") in message
    assert "delete it" in message


def test_an_unwritable_directory_is_named(put: Put) -> None:
    root = put("mnist", _mnist_files()[0])
    (root / "mnist").write_text("a file where a directory must go")
    assert "data.dir" in _one_line(lambda: prepare("mnist", root))


@pytest.mark.parametrize("damage", ["truncated", "altered"])
def test_a_wrong_archive_is_told_and_kept(damage: str, put: Put) -> None:
    files = _cifar10_files()[0]
    root = put("cifar10", files)
    archive = root / "downloads" / "cifar-10-binary.tar.gz"
    content = files[archive.name]
    bad = content[:-100] if damage == "truncated" else content[:-1] + b"?"
    archive.write_bytes(bad)
    message = _one_line(lambda: prepare("cifar10", root))
    assert message.startswith(str(archive))
    numbers = (len(bad), len(content)) if damage == "truncated" else ()
    assert all(f"{n:,}" in message for n in numbers)
    assert numbers or (_sha(bad) in message and _sha(content) in message)
    assert "delete it and run again" in message
    assert archive.read_bytes() == bad
    assert not (root / "cifar10").exists()


def test_a_corrupt_record_is_told_in_one_line(put: Put) -> None:
    root = put("mnist", _mnist_files()[0])
    (file,) = prepare("mnist", root).glob("mnist-train*")
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 8] = b"\0" * 8
    file.write_bytes(content)
    load = partial(load_source, "tfds:mnist", "train", data_dir=str(root))
    message = _one_line(lambda: as_arrays(load()))
    assert str(file.parent) in message
    assert "prepare it again" in message
    file.unlink()
    assert "prepare it again" in _one_line(lambda: as_arrays(load()))


def test_unknown_names() -> None:
    assert "cifar10" in _one_line(lambda: prepare("cifar1O"))


def test_the_default_directory_is_that_of_tfds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TFDS_DATA_DIR", "/from/env")
    assert builders.data_root() == Path("/from/env")
    assert builders.data_root("/given") == Path("/given")
    monkeypatch.delenv("TFDS_DATA_DIR")
    assert builders.data_root() == Path.home() / "tensorflow_datasets"


def _no_such_host(*_: object, **__: object) -> None:
    raise socket.gaierror(-3, "Temporary failure in name resolution")


def _hang(*_: object, **__: object) -> None:
    threading.Event().wait(60)


@pytest.mark.parametrize("resolver", [_no_such_host, _hang])
def test_offline_fails_soon_in_one_line(
    resolver: Callable, put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = put("mnist", _mnist_files()[0])
    missing = root / "downloads" / "train-images-idx3-ubyte.gz"
    missing.unlink()
    assert download.CONNECT_SECONDS <= 8
    monkeypatch.setattr(download, "CONNECT_SECONDS", 0.3)
    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    monkeypatch.setenv("no_proxy", "*")
    start = time.monotonic()
    message = _one_line(lambda: load_source("tfds:mnist", "train", data_dir=str(root)))
    assert time.monotonic() - start < 5
    assert f"http://nowhere.invalid/a/{missing.name}" in message
    assert f"put {missing} there by hand" in message
    assert "python train.py --config configs/allcnn_c.py:digits" in message
    assert not list(missing.parent.glob("*.part"))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A directory, and the url at which a local server shows its files."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    site = tmp_path / "site"
    site.mkdir()
    handler = partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as http_server:
        threading.Thread(target=http_server.serve_forever, daemon=True).start()
        yield site, f"http://127.0.0.1:{http_server.server_port}"
        http_server.shutdown()


def test_download(
    server: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "*")
    site, url = server
    content = _random(3, 3_000_000).tobytes()
    archive = RemoteFile(f"{url}/a.bin", _sha(content), len(content))
    target = tmp_path / "downloads"

    message = _one_line(lambda: builders.fetch([archive], target))
    assert "404" in message
    (site / "a.bin").write_bytes(content[:-1])
    message = _one_line(lambda: builders.fetch([archive], target))
    assert "2,999,999 bytes, expected 3,000,000" in message
    assert not list(target.iterdir())  # the next run starts afresh

    (site / "a.bin").write_bytes(content)
    assert builders.fetch([archive], target)["a.bin"] == target / "a.bin"
    (site / "a.bin").unlink()
    assert builders.fetch([archive], target)["a.bin"].read_bytes() == content
    assert [p.name for p in target.iterdir()] == ["a.bin"]


def test_nothing_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        archive = RemoteFile(f"http://127.0.0.1:{free.getsockname()[1]}/a.bin", "", 1)
    message = _one_line(lambda: builders.fetch([archive], tmp_path))
    assert "refused" in message
