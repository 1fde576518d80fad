"""CIFAR-10, CIFAR-100 and MNIST prepared for tensorflow-datasets, without TensorFlow.

The builders that come with tensorflow-datasets read and encode through TensorFlow.
Ours are subclasses: the same features, names, versions, archives and checksums, read
in plain Python, in the same layout: `tfds.data_source("cifar10")` reads it as well.
"""

import contextlib
import gzip
import importlib.resources
import io
import logging
import os
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from flaxcnn import download
from flaxcnn.download import RemoteFile
from flaxcnn.errors import FlaxcnnError, unknown

NAMES = ("cifar10", "cifar100", "mnist")
OFFLINE = "python train.py --config configs/allcnn_c.py:digits"


def data_root(data_dir: str | os.PathLike[str] | None = None) -> Path:
    """`data_dir`, else $TFDS_DATA_DIR, else ~/tensorflow_datasets, as tfds chooses."""
    chosen = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return Path(chosen).expanduser()


@contextlib.contextmanager
def quiet_tfds() -> Iterator[Any]:
    """The module tensorflow_datasets, without its logs, progress bars and prints.

    Raises:
      FlaxcnnError: it is not installed.
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise FlaxcnnError(
            f"no tensorflow_datasets here ({error}); run `pip install "
            "tensorflow-datasets importlib_resources`, or use digits or folder:<path>"
        ) from error
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield tfds
    finally:
        logger.setLevel(level)


def prepare(name: str, data_dir: str | os.PathLike[str] | None = None) -> Path:
    """Download and prepare "cifar10", "cifar100" or "mnist"; returns its directory.

    The directory is `<data_dir>/<name>/<version>`; it appears in one step, complete.
    Where it exists, nothing is done. Archives in `<data_dir>/downloads/` are used, so
    a machine without network needs only the official files there, names unchanged.

    Raises:
      FlaxcnnError: an unknown name, no network, an archive whose size or sha256 is
        not the published one, or a directory that cannot be written.
    """
    if name not in NAMES:
        raise unknown("data set to prepare", name, NAMES)
    root = data_root(data_dir)
    with quiet_tfds() as tfds:
        official = tfds.builder_cls(name)
        path = root / name / str(official.VERSION)
        if os.path.isfile(path / "dataset_info.json"):
            return path
        if os.path.exists(path):
            raise FlaxcnnError(f"{path}: incomplete; delete it and run again")
        try:
            _build(official, fetch(_archives(name), root / "downloads"), root)
        except OSError as error:
            if not (path / "dataset_info.json").is_file():  # else: someone was faster
                raise FlaxcnnError(
                    f"cannot prepare {name} in {root} ({error}); make it writable, "
                    "with 500 MB free, or set data.dir"
                ) from error
    return path


def fetch(archives: list[RemoteFile], directory: Path) -> dict[str, Path]:
    """The verified files in `directory` by name, downloaded where they are missing.

    Raises:
      FlaxcnnError: no network (told after 8 seconds), or a wrong size or sha256.
    """
    files = {archive.name: directory / archive.name for archive in archives}
    missing = " and ".join(str(f) for f in files.values() if not f.exists())
    cure = f"put {missing} there by hand, or work offline: {OFFLINE}"
    for archive in archives:
        download.fetch(archive, files[archive.name], cure)
    return files


def _archives(name: str) -> list[RemoteFile]:
    """What tensorflow-datasets publishes beside its builder, tab-separated."""
    package = importlib.resources.files("tensorflow_datasets")
    table = (package / "url_checksums" / f"{name}.txt").read_text()
    rows = (line.split("\t") for line in table.splitlines())
    return [RemoteFile(url, sha256, int(size)) for url, size, sha256, _ in rows]


def _build(official: Any, files: dict[str, Path], root: Path) -> None:
    read_split = _mnist if official.name == "mnist" else _cifar

    class Builder(official, skip_registration=True):  # type: ignore[call-arg]
        name = official.name
        url_infos = None  # nothing is left for tfds to download

        def _split_generators(self, _: Any) -> dict[str, Any]:
            return {s: self._generate_examples(s) for s in ("train", "test")}

        def _generate_examples(self, split: str) -> Iterator[tuple[int, Any]]:
            return enumerate(read_split(self.info.features, files, split))

    Builder(data_dir=root, file_format="array_record").download_and_prepare()


def _cifar(
    features: Any, files: dict[str, Path], split: str
) -> Iterator[dict[str, Any]]:
    """The examples of `cifar-10-binary.tar.gz` or `cifar-100-binary.tar.gz`."""
    from PIL import Image

    if "coarse_label" in features:
        directory, keys = "cifar-100-binary", ["coarse_label", "label"]
        labels = ["coarse_label_names.txt", "fine_label_names.txt"]
        batches = [f"{split}.bin"]
    else:
        directory, keys = "cifar-10-batches-bin", ["label"]
        labels = ["batches.meta.txt"]
        train = [f"data_batch_{i}.bin" for i in range(1, 6)]
        batches = train if split == "train" else ["test_batch.bin"]
    (archive,) = files.values()
    with tarfile.open(archive) as tar:

        def read(name: str) -> bytes:
            member = tar.extractfile(f"{directory}/{name}")
            assert member is not None, f"{name} is no file"
            return member.read()

        for key, name in zip(keys, labels, strict=True):
            features[key].names = read(name).decode().split()
        index = 0
        for name in batches:
            rows = np.frombuffer(read(name), np.uint8).reshape(-1, len(keys) + 3072)
            for row in rows:
                pixels = row[len(keys) :].reshape(3, 32, 32).transpose(1, 2, 0)
                example = dict(zip(keys, row[: len(keys)].tolist(), strict=True))
                image = Image.fromarray(np.ascontiguousarray(pixels))
                yield {**example, "id": f"{split}_{index:05d}", "image": image}
                index += 1


def _mnist(_: Any, files: dict[str, Path], split: str) -> Iterator[dict[str, Any]]:
    """The examples of MNIST's four idx files: headers of 16 and 8 bytes, then data."""
    from PIL import Image

    prefix = "train" if split == "train" else "t10k"
    pixels = gzip.decompress(files[f"{prefix}-images-idx3-ubyte.gz"].read_bytes())[16:]
    labels = gzip.decompress(files[f"{prefix}-labels-idx1-ubyte.gz"].read_bytes())[8:]
    images = np.frombuffer(pixels, np.uint8).reshape(-1, 28, 28)
    for image, label in zip(images, labels, strict=True):
        yield {"image": Image.fromarray(image), "label": label}
