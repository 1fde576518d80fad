"""Batches of photographs, as PyTorch programs make them."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, RandomSampler

from benchmarks.batches import (
    CROP,
    MEAN,
    RESIZE,
    STD,
    batches_a_step,
    statistics_of_each,
    write_photographs,
)
from benchmarks.benchmark import Contender, Setup, cores
from benchmarks.peers.nets import import_torchvision


def jpeg(setup: Setup) -> Contender:
    """torchvision's ImageFolder in a DataLoader, or PIL in a loop.

    The loader's images a step are those of one core.
    """
    bench, loader = setup.bench, setup.contender == "torchvision_loader"
    torch.set_num_threads(cores())
    temporary = tempfile.TemporaryDirectory(prefix="flaxcnn-benchmark-")
    folder = Path(temporary.name)
    write_photographs(bench, folder)
    make = loader_batches if loader else loop_batches
    batches = make(folder / "train", bench.batch, shuffle=not setup.exact)
    count = batches_a_step(setup.exact) if loader else 1
    result: Any = None

    def step() -> None:
        nonlocal result
        assert temporary.name  # the files live as long as the step
        for _ in range(count):
            result = next(batches)

    return Contender(
        step, lambda: float(result.ravel()[0]), 0,
        count * bench.batch / (cores() if loader else 1),
        lambda: statistics_of_each(
            result.permute(0, 2, 3, 1).numpy() if loader else result
        ),
    )  # fmt: skip


def loader_batches(folder: Path, batch: int, shuffle: bool) -> Iterator[torch.Tensor]:
    """A worker a core; uint8 from the workers, normalized in the main process."""
    torchvision = import_torchvision()
    t = torchvision.transforms
    transform = t.Compose([
        t.Resize(RESIZE), t.CenterCrop(CROP), t.RandomHorizontalFlip(),
        t.PILToTensor(),
    ])  # fmt: skip
    photographs = torchvision.datasets.ImageFolder(folder, transform)
    endless = RandomSampler(photographs, replacement=True, num_samples=1 << 40)
    loader = DataLoader(
        photographs, batch, sampler=endless if shuffle else None,
        num_workers=cores(),
        multiprocessing_context="fork",  # as in a program of its own
    )  # fmt: skip
    mean, std = (255 * torch.tensor(x).view(3, 1, 1) for x in (MEAN, STD))
    for images, _ in loader:
        yield (images - mean) / std


def loop_batches(folder: Path, batch: int, shuffle: bool) -> Iterator[np.ndarray]:
    """One thread: PIL, then numpy."""
    t = import_torchvision().transforms
    transform = t.Compose([
        t.Resize(RESIZE), t.CenterCrop(CROP), t.RandomHorizontalFlip()
    ])  # fmt: skip
    files, rng = sorted(folder.rglob("*.jpg")), np.random.default_rng(0)
    mean, std = (255 * np.array(x, np.float32) for x in (MEAN, STD))
    while True:
        order = rng.permutation(len(files)) if shuffle else np.arange(len(files))
        for index in order[: len(files) // batch * batch].reshape(-1, batch):
            images = []
            for i in index:
                with Image.open(files[i]) as image:
                    images.append(np.asarray(transform(image.convert("RGB"))))
            yield (np.stack(images) - mean) / std
