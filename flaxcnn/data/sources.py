"""Where labelled images come from: one split as a random-access `Source`.

`digits` needs no download, `tfds:<name>` reads a prepared tensorflow-datasets set
without TensorFlow, and `folder:<path>` reads the user's own image files.
"""

import io
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from flaxcnn.data import builders
from flaxcnn.data.images import (
    SUFFIXES,
    Crop,
    check_sizes,
    cut,
    decode_image,
    image_files,
    read_image,
    square,
)
from flaxcnn.errors import FlaxcnnError, reason, unknown

Example = tuple[np.ndarray, int]
Decode = Callable[..., np.ndarray]

KNOWN = ("digits", "tfds:<name>", "folder:<path>")
SPLITS = {"train": ("train",), "test": ("test", "validation", "val")}
SMALL = 64 * 64 * 3


@dataclass(frozen=True)
class Source:
    """One split of a data set, random access.

    `source[i]` is `{"image": uint8 [H, W, C], "label": int}`, decoded when asked for;
    it raises FlaxcnnError, naming the file or record, where that cannot be decoded.
    `classes` holds the class names: label `k` is `classes[k]`. `read(i, crop)` takes a
    box in place of the central square, see `decode_image`.
    """

    name: str
    classes: tuple[str, ...]
    size: int
    read: Callable[..., Example]

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, label = self.read(range(self.size)[index])
        return {"image": image, "label": label}


def load_source(
    name: str,
    split: str,
    *,
    data_dir: str | None = None,
    limit: int | None = None,
    image_size: int | None = None,
    resize: int | None = None,
) -> Source:
    """The split "train" or "test" of a data set.

    Names:
      `digits`: scikit-learn's 1,797 grey images [8, 8, 1], their 0..16 scaled to
        0..255. Test is every fifth (i % 5 == 4: 359), train the others (1,438).
      `tfds:<name>[/<config>][/<version>]`: a data set prepared as array_record in
        `data_dir`, else $TFDS_DATA_DIR, else ~/tensorflow_datasets. Its validation
        split is the test split where it has no labelled one. cifar10, cifar100 and
        mnist are downloaded and prepared when they are missing.
      `folder:<path>`: `<path>/<split>/<class>/*.jpg` (or png, webp, ...), the test
        split in `test`, `validation` or `val`. Classes are the sorted directory names
        of `train`; the images take turns by class, so that `limit` keeps them all.

    `limit` keeps the first samples (None or 0: all). `image_size` crops the central
    square of that many pixels from the image, whose shorter side is first resized to
    `resize` pixels (None or 0: image_size), as torchvision does it.

    Raises:
      FlaxcnnError: an unknown name or split, sizes that do not fit, or data that is
        missing or unreadable.
    """
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    if limit is not None and limit < 0:
        raise FlaxcnnError(f"data.limit={limit} is negative; use 0 for all samples")
    check_sizes(image_size, resize)
    kind, _, rest = name.partition(":")
    if name == "digits":
        source = _digits(split, image_size, resize)
    elif kind == "tfds" and rest:
        decode = partial(decode_image, image_size=image_size, resize=resize)
        source = _tfds(rest, split, builders.data_root(data_dir), decode)
    elif kind == "folder" and rest:
        source = _folder(Path(rest).expanduser(), split, image_size, resize)
    elif name in builders.NAMES:
        raise FlaxcnnError(f"unknown data set {name!r}; did you mean tfds:{name}?")
    else:
        raise unknown("data set", name, KNOWN)
    return replace(source, size=min(limit or len(source), len(source)))


def as_arrays(source: Source) -> tuple[np.ndarray, np.ndarray]:
    """All samples in memory: images uint8 [N, H, W, C] and labels int32 [N].

    Raises:
      FlaxcnnError: images of different sizes.
    """
    first = source[0]["image"]
    images = np.empty((len(source), *first.shape), np.uint8)
    labels = np.empty(len(source), np.int32)

    def fill(index: int) -> None:
        image, labels[index] = source.read(index)
        check_shape(source.name, image, first.shape)
        images[index] = image

    if first.size <= SMALL:  # threads would fight for the GIL: half the speed
        for index in range(len(source)):
            fill(index)
        return images, labels
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(fill, range(len(source))):
            pass  # raises what fill raised, and cancels the rest
    return images, labels


def check_shape(name: str, image: np.ndarray, shape: tuple[int, ...]) -> None:
    """Raises FlaxcnnError for an image of the source `name` that has not that shape."""
    if image.shape != shape:
        raise FlaxcnnError(
            f"{name}: images of different sizes, {shape} and {image.shape}; "
            "set data.image_size"
        )


def _digits(split: str, image_size: int | None, resize: int | None) -> Source:
    from PIL import Image
    from sklearn.datasets import load_digits

    data = load_digits()
    chosen = (np.arange(len(data.images)) % 5 == 4) == (split == "test")
    given = np.round(data.images[chosen] * (255 / 16)).astype(np.uint8)
    images, labels = given, data.target[chosen]
    if image_size:
        squares = (square(Image.fromarray(x), image_size, resize) for x in given)
        images = np.stack([np.asarray(x) for x in squares])

    def read(index: int, crop: Crop | None = None) -> Example:
        image = images[index]
        if crop and image_size:
            whole = Image.fromarray(given[index])
            image = np.asarray(cut(whole, crop(8, 8), (8, 8), image_size))
        return image[..., None], int(labels[index])

    return Source("digits", tuple(map(str, data.target_names)), len(images), read)


def _tfds(name: str, split: str, root: Path, decode: Decode) -> Source:
    with builders.quiet_tfds() as tfds:
        path = _prepared(root, name)
        if path is None and name in builders.NAMES:
            path = builders.prepare(name, root)
        if path is None:
            raise _unprepared(tfds, name, root)
        return _tfds_split(tfds, f"tfds:{name}", path, split, decode)


def _prepared(root: Path, name: str) -> Path | None:
    """The directory of the newest prepared version; `name` may name the version."""
    path = root / name.replace(":", "/")
    found = [path, *path.glob("*")]  # tfds prepares in `<version>.incomplete*`
    found = [p for p in found if re.fullmatch(r"\d+\.\d+\.\d+", p.name)]
    found = [p for p in found if os.path.isfile(p / "dataset_info.json")]
    return max(found, key=lambda p: [*map(int, p.name.split("."))], default=None)


def _unprepared(tfds: Any, name: str, root: Path) -> FlaxcnnError:
    base = re.split("[:/]", name)[0]
    unversioned = re.sub(r"[:/]\d+\.\d+\.\d+$", "", name)
    names = tfds.list_builders(with_community_datasets=False)
    if base not in names:
        return unknown("tfds data set", base, names)
    return FlaxcnnError(
        f"tfds:{name} is not prepared in {root}; run `pip install -e '.[prepare]'` "
        f"and `tfds build {unversioned} --file_format=array_record --data_dir={root}`, "
        "or set data.dir"
    )


def _tfds_split(tfds: Any, name: str, path: Path, split: str, decode: Decode) -> Source:
    decoders = {"image": tfds.decode.SkipDecoding()}
    try:
        builder = tfds.builder_from_directory(path)
        names = [s for s in SPLITS[split] if s in builder.info.splits]
        data = [builder.as_data_source(s, decoders=decoders) for s in names]
        features = builder.info.features
        channels = features["image"].shape[-1]
        classes = tuple(features["label"].names)
        # The test split of imagenet2012 is one without labels: they are -1.
        labelled = next((d for d in data if d[0]["label"] >= 0), None)
    except Exception as error:  # whatever tfds and array_record think of the files
        raise FlaxcnnError(
            f"{name}: cannot read {path} as labelled images in array_record "
            f"({reason(error)}); delete that directory and prepare it again"
        ) from error
    if labelled is None or channels not in (1, 3):
        raise FlaxcnnError(f"{name}: no labelled {split} split of grey or RGB images")

    def read(index: int, crop: Crop | None = None) -> Example:
        try:
            example = labelled[index]
            stream = io.BytesIO(example["image"])
            return decode(stream, channels, crop=crop), int(example["label"])
        except Exception as error:
            raise FlaxcnnError(
                f"{name}: record {index} of {path} is corrupt ({reason(error)}); "
                "delete that directory and prepare it again"
            ) from error

    return Source(name, classes, len(labelled), read)


def _folder(
    root: Path, split: str, image_size: int | None, resize: int | None
) -> Source:
    if not os.path.isdir(root / "train"):
        raise FlaxcnnError(
            f"no directory {root / 'train'}; images go into {root}/<split>/<class>/"
        )
    tried = [root / name for name in SPLITS[split]]
    directory = next((path for path in tried if os.path.isdir(path)), None)
    if directory is None:
        raise FlaxcnnError(f"no directory {' or '.join(map(str, tried))}; add one")
    classes = _class_names(root / "train")
    extra = sorted({*_class_names(directory)} - {*classes})
    if extra:
        raise FlaxcnnError(
            f"{directory / extra[0]}: a class that {root / 'train'} lacks; "
            "rename it or add training images of it"
        )
    files = [image_files(directory / name) for name in classes]
    empty = [name for name, found in zip(classes, files, strict=True) if not found]
    if len(empty) == len(classes) or (empty and split == "train"):
        raise FlaxcnnError(
            f"no images in {directory / empty[0] if empty else directory}; "
            f"known kinds: {' '.join(SUFFIXES)}"
        )
    turns = [(i, k, f) for k, found in enumerate(files) for i, f in enumerate(found)]
    samples = [(file, label) for _, label, file in sorted(turns)]

    def read(index: int, crop: Crop | None = None) -> Example:
        file, label = samples[index]
        return read_image(file, image_size, resize, crop=crop), label

    return Source(f"folder:{root}", classes, len(samples), read)


def _class_names(directory: Path) -> tuple[str, ...]:
    found = (p.name for p in directory.iterdir() if p.is_dir())
    return tuple(sorted(name for name in found if not name.startswith(".")))
