"""CIFAR's augmentation in torchvision: image by image, or a whole batch."""

from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.batches import MEAN, STD, center_statistics, uint8_images
from benchmarks.benchmark import Contender, Setup, cores
from benchmarks.peers.nets import import_torchvision


def augment(setup: Setup) -> Contender:
    """v1: PIL images one by one, as torchvision's CIFAR10 gives them.

    v2: a tensor of uint8 [N, 3, H, W]; one crop and one flip for the whole batch.
    """
    torch.set_num_threads(cores())
    torch.manual_seed(0)
    import_torchvision()
    from torchvision.transforms import v2

    bench = setup.bench
    images = uint8_images(bench.batch, bench.size)
    x = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    v1 = import_torchvision().transforms
    one_by_one = v1.Compose([
        v1.RandomCrop(bench.size, padding=4), v1.RandomHorizontalFlip(),
        v1.ToTensor(), v1.Normalize(MEAN, STD),
    ])  # fmt: skip
    batched = v2.Compose([
        v2.RandomCrop(bench.size, padding=4), v2.RandomHorizontalFlip(),
        v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD),
    ])  # fmt: skip
    result: Any = None

    def step() -> None:
        nonlocal result
        if setup.contender == "torchvision_v1":
            result = torch.stack([one_by_one(Image.fromarray(i)) for i in images])
        else:
            result = batched(x)

    return Contender(
        step, lambda: float(result[0, 0, 0, 0]), 0, bench.batch,
        lambda: center_statistics(result.permute(0, 2, 3, 1).numpy()),
    )  # fmt: skip
