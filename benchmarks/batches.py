"""Random images: arrays for the bare steps, files for whole trainers."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.benchmark import Benchmark, cores

RESIZE, CROP = 256, 224  # shorter side of a photograph, and the square cut from it
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def batch_of(bench: Benchmark) -> tuple[np.ndarray, np.ndarray]:
    """Images [N, size, size, 3], normal, and labels int64 [N].

    Of float64 if the row is, else of float32.
    """
    rng = np.random.default_rng(0)
    shape = (bench.batch, bench.size, bench.size, 3)
    images = rng.standard_normal(shape, np.float32)
    if bench.dtype == "float64":
        images = images.astype(np.float64)
    return images, rng.integers(bench.classes, size=bench.batch)


def uint8_images(count: int, size: int) -> np.ndarray:
    """Images [count, size, size, 3] of uniform 0..255."""
    rng = np.random.default_rng(1)
    return rng.integers(256, size=(count, size, size, 3), dtype=np.uint8)


def center_statistics(images: np.ndarray) -> list[float]:
    """Mean and deviation of [N, 32, 32, 3] where no shift by 4 brings a border."""
    center = images[:, 4:28, 4:28]
    return [1 + float(center.mean()), float(center.std())]


def write_images(bench: Benchmark, folder: Path) -> None:
    """A data set of `bench.classes` as `folder:` reads it.

    Of 32 pixels PNG files: 40 batches; of the row of whole epochs 400, about as many
    as CIFAR has. Of 224: four batches of JPEG photographs of 344x258.
    """
    if bench.size <= 64:
        images = uint8_images(256, bench.size)
        count, suffix = bench.batch * (400 if bench.kind == "epoch" else 40), "png"
        files = [_encoded(Image.fromarray(x), "PNG") for x in images]
    else:
        count, suffix, files = 4 * bench.batch, "jpg", _photographs(344)
    for split, number in (("train", count), ("test", bench.batch)):
        for i in range(number):
            path = folder / split / str(i % bench.classes) / f"{i}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(files[i % len(files)])


def write_photographs(bench: Benchmark, folder: Path) -> None:
    """Two batches of JPEG files, `bench.size` wide and 3/4 of it high, of one class."""
    files = _photographs(bench.size)
    for split in ("train", "test"):
        (folder / split / "photograph").mkdir(parents=True)
        for i in range(2 * bench.batch):
            path = folder / split / "photograph" / f"{i:06}.jpg"
            path.write_bytes(files[i % len(files)])


def batches_a_step(exact: bool) -> int:
    """Two a core: what is read ahead, so that the warm-up uses it up; to compare, 1."""
    return 1 if exact else 2 * cores()


def _photographs(width: int) -> list[bytes]:
    """Eight JPEG files, 3/4 as high as wide.

    Noise of all sizes, so that bytes a pixel and the seconds to decode one are those
    of photographs.
    """
    rng = np.random.default_rng(2)
    return [_encoded(_photograph(rng, width), "JPEG", quality=90) for _ in range(8)]


def _encoded(image: Image.Image, kind: str, **options: int) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def _photograph(rng: np.random.Generator, width: int) -> Image.Image:
    x = np.zeros((1, 1, 3), np.float32)
    for octave in reversed(range((width // 4).bit_length())):
        size = width >> octave, width * 3 // 4 >> octave
        channels = (Image.fromarray(x[..., c].copy()) for c in range(3))
        smooth = [c.resize(size, Image.Resampling.BICUBIC) for c in channels]
        noise = rng.standard_normal((size[1], size[0], 3), np.float32)
        x = np.stack([np.asarray(c) for c in smooth], -1) + noise * 10 * 1.2**octave
    return Image.fromarray((128 + x).clip(0, 255).astype(np.uint8))


def statistics_of_each(images: np.ndarray) -> list[float]:
    """Mean and deviation of each image [N, H, W, 3]; mirroring leaves them."""
    return [*images.mean((1, 2, 3)).tolist(), *images.std((1, 2, 3)).tolist()]
