"""Random images: arrays for the bare steps, files for whole trainers."""

from pathlib import Path

import numpy as np

from benchmarks.benchmark import Benchmark

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def batch_of(bench: Benchmark) -> tuple[np.ndarray, np.ndarray]:
    """Images float32 [N, size, size, 3], normal, and labels int64 [N]."""
    rng = np.random.default_rng(0)
    shape = (bench.batch, bench.size, bench.size, 3)
    images = rng.standard_normal(shape, np.float32)
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
    """A data set as flaxcnn's `folder:` and torchvision's ImageFolder read it.

    Of 32 pixels: 5,000 PNG files. Of 224: 1,024 JPEG files of 256.
    """
    from PIL import Image

    small = bench.size <= 64
    count, size, suffix = (5000, bench.size, "png") if small else (1024, 256, "jpg")
    count = max(count, 2 * bench.batch)
    images = uint8_images(min(count, 256), size)
    for split, number in (("train", count), ("test", bench.batch)):
        for i in range(number):
            path = folder / split / str(i % bench.classes) / f"{i}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images[i % len(images)]).save(path)
