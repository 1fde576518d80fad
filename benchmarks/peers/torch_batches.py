"""Augmented batches of CIFAR's shape, as PyTorch programs make them."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.batches import MEAN, STD, uint8_images
from benchmarks.benchmark import Benchmark
from benchmarks.peers.nets import import_torchvision
from benchmarks.suites import EPOCH

PAD = 4

Batches = Iterator[tuple[torch.Tensor, torch.Tensor]]


def resident_batches(bench: Benchmark, device: torch.device) -> Batches:
    """The set on the device as uint8; a shuffle, a gather and a flip in torch."""
    images = torch.from_numpy(uint8_images(EPOCH, bench.size)).permute(0, 3, 1, 2)
    images = torch.nn.functional.pad(images.to(device), (PAD,) * 4)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(bench.classes, (EPOCH,), device=device)
    mean, std = (
        255 * torch.tensor(x, device=device).view(3, 1, 1) for x in (MEAN, STD)
    )
    grid = torch.arange(bench.size, device=device)
    n = bench.batch
    while True:
        order = torch.randperm(EPOCH, device=device)
        for index in order[: EPOCH // n * n].view(-1, n):
            shift = torch.randint(2 * PAD + 1, (2, n, 1), device=device)
            flip = torch.rand(n, 1, device=device) < 0.5
            rows = shift[0] + grid
            columns = shift[1] + torch.where(flip, bench.size - 1 - grid, grid)
            x = images[index[:, None, None], :, rows[:, :, None], columns[:, None]]
            yield (x.permute(0, 3, 1, 2) - mean) / std, labels[index]


class Pictures(Dataset):
    """CIFAR as torchvision keeps it: an array, and a PIL image when asked for one."""

    def __init__(self, bench: Benchmark):
        t = import_torchvision().transforms
        self.images = uint8_images(5000, bench.size)
        self.classes = bench.classes
        self.transform = t.Compose([
            t.RandomCrop(bench.size, padding=PAD), t.RandomHorizontalFlip(),
            t.ToTensor(), t.Normalize(MEAN, STD),
        ])  # fmt: skip

    def __len__(self) -> int:
        return EPOCH

    def __getitem__(self, index: int) -> tuple[Any, int]:
        from PIL import Image

        image = Image.fromarray(self.images[index % len(self.images)])
        return self.transform(image), index % self.classes


def loader_batches(bench: Benchmark) -> Batches:
    """The way of the tutorials: a DataLoader with 8 processes."""
    loader = DataLoader(
        Pictures(bench), bench.batch, shuffle=True, drop_last=True, num_workers=8,
        persistent_workers=True, pin_memory=torch.cuda.is_available(),
        multiprocessing_context="fork",  # as in a program of its own
    )  # fmt: skip
    while True:
        yield from loader
