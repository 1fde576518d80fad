"""PyTorch, eager: channels_last, all threads, fused SGD."""

from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.suites import (
    LEARNING_RATE,
    MOMENTUM,
    WEIGHT_DECAY,
    Benchmark,
    Contender,
    Weights,
    cores,
)


def allcnn_c(classes: int, dropout: bool) -> nn.Module:
    """All-CNN-C, arXiv:1412.6806."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["dropout0"] = nn.Dropout(0.2 * dropout)

    def conv(n: int, c: int, width: int, size: int, stride: int, pad: int) -> None:
        layers[f"conv{n}"] = nn.Conv2d(c, width, size, stride, pad)
        layers[f"relu{n}"] = nn.ReLU(inplace=True)

    conv(1, 3, 96, 3, 1, 1)
    conv(2, 96, 96, 3, 1, 1)
    conv(3, 96, 96, 3, 2, 1)
    layers["dropout1"] = nn.Dropout(0.5 * dropout)
    conv(4, 96, 192, 3, 1, 1)
    conv(5, 192, 192, 3, 1, 1)
    conv(6, 192, 192, 3, 2, 1)
    layers["dropout2"] = nn.Dropout(0.5 * dropout)
    conv(7, 192, 192, 3, 1, 0)
    conv(8, 192, 192, 1, 1, 0)
    conv(9, 192, classes, 1, 1, 0)
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    return nn.Sequential(layers)


NETS = {"allcnn_c": allcnn_c}


def train(
    bench: Benchmark,
    weights: Weights,
    images: np.ndarray,
    labels: np.ndarray,
    dropout: bool,
) -> Contender:
    """A training step of PyTorch."""
    torch.set_num_threads(cores())
    model = NETS[bench.net](bench.classes, dropout)
    model.load_state_dict(state_dict(weights))
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.from_numpy(images).permute(0, 3, 1, 2)  # a channels_last view
    y = torch.from_numpy(labels)
    kernels = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    groups: list[dict[str, Any]] = [
        {"params": kernels, "weight_decay": WEIGHT_DECAY},
        {"params": others},
    ]
    optimizer = torch.optim.SGD(groups, LEARNING_RATE, MOMENTUM, fused=True)
    last = torch.tensor(torch.nan)

    def step() -> None:
        nonlocal last
        optimizer.zero_grad()
        last = F.cross_entropy(model(x), y)
        last.backward()
        optimizer.step()

    params = sum(p.numel() for p in model.parameters())
    return Contender(step, lambda: last.item(), params, torch.get_num_threads())


def state_dict(weights: Weights) -> dict[str, torch.Tensor]:
    """Weights in torch's names and layout."""
    state = {}
    for path, value in weights.items():
        layer, leaf = path.split("/")[1:]
        if leaf == "kernel":
            leaf, value = "weight", value.transpose(3, 2, 0, 1)
        state[f"{layer}.{leaf}"] = torch.tensor(value)
    return state
