"""The networks in PyTorch: torchvision's, and by hand what it has not."""

from collections import OrderedDict
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.benchmark import Benchmark


def make(bench: Benchmark) -> nn.Module:
    """The network of a row, with the names of our parameters."""
    by_hand = {"allcnn_c": allcnn_c, "nin": nin, "vgg16_cifar": vgg16_cifar}
    if bench.net in by_hand:
        return by_hand[bench.net](bench.classes)
    if bench.net == "airbench94":
        return Airbench94()
    options: dict[str, Any] = {"num_classes": bench.classes}
    if bench.net in ("googlenet", "inception_v3"):
        options |= {"aux_logits": False, "init_weights": False}
    return getattr(import_torchvision().models, bench.net)(**options)


def import_torchvision() -> Any:
    """torchvision; beside a CPU build of torch its import misses two operators."""
    try:
        import torchvision
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for op in ("nms", "qnms"):
            library.define(
                f"{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            )
        import_torchvision.library = library  # type: ignore[attr-defined]  # lives on
        import torchvision
    return torchvision


def allcnn_c(classes: int) -> nn.Module:
    """All-CNN-C, arXiv:1412.6806."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["dropout0"] = nn.Dropout(0.2)

    def conv(n: int, c: int, width: int, size: int, stride: int, pad: int) -> None:
        layers[f"conv{n}"] = nn.Conv2d(c, width, size, stride, pad)
        layers[f"relu{n}"] = nn.ReLU(inplace=True)

    conv(1, 3, 96, 3, 1, 1)
    conv(2, 96, 96, 3, 1, 1)
    conv(3, 96, 96, 3, 2, 1)
    layers["dropout1"] = nn.Dropout(0.5)
    conv(4, 96, 192, 3, 1, 1)
    conv(5, 192, 192, 3, 1, 1)
    conv(6, 192, 192, 3, 2, 1)
    layers["dropout2"] = nn.Dropout(0.5)
    conv(7, 192, 192, 3, 1, 0)
    conv(8, 192, 192, 1, 1, 0)
    conv(9, 192, classes, 1, 1, 0)
    return nn.Sequential(OrderedDict(
        **layers, pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten()
    ))  # fmt: skip


def nin(classes: int) -> nn.Module:
    """Network in Network, arXiv:1312.4400."""

    def mlpconv(c: int, widths: tuple[int, ...], size: int) -> nn.Module:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for i, width in enumerate(widths):
            kernel = 1 if i else size
            layers[f"conv{i}"] = nn.Conv2d(c, width, kernel, padding=kernel // 2)
            layers[f"relu{i}"] = nn.ReLU(inplace=True)
            c = width
        return nn.Sequential(layers)

    return nn.Sequential(OrderedDict(
        mlpconv1=mlpconv(3, (192, 160, 96), 5),
        pool1=nn.MaxPool2d(3, 2, ceil_mode=True),
        dropout1=nn.Dropout(0.5),
        mlpconv2=mlpconv(96, (192, 192, 192), 5),
        pool2=nn.MaxPool2d(3, 2, ceil_mode=True),
        dropout2=nn.Dropout(0.5),
        mlpconv3=mlpconv(192, (192, 192), 3),
        classifier=mlpconv(192, (classes,), 1),
        pool3=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
    ))  # fmt: skip


def vgg16_cifar(classes: int) -> nn.Module:
    """VGG-16 for 32 pixels: a last map of 1x1, no dropout."""
    net = import_torchvision().models.vgg16(
        num_classes=classes, dropout=0.0, init_weights=False
    )
    net.avgpool, net.classifier[0] = nn.Identity(), nn.Linear(512, 4096)
    return net


class AirbenchGroup(nn.Module):
    """Two 3x3 convolutions, the first followed by a pooling."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.gelu(self.norm1(F.max_pool2d(self.conv1(x), 2)))
        return F.gelu(self.norm2(self.conv2(x)))


class Airbench94(nn.Module):
    """The network of airbench94, arXiv:2404.00498; all of it is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.whiten = nn.Conv2d(3, 24, 2)
        self.group1 = AirbenchGroup(24, 64)
        self.group2 = AirbenchGroup(64, 256)
        self.group3 = AirbenchGroup(256, 256)
        self.head = nn.Linear(256, 10, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.group1(F.gelu(self.whiten(x)))
        x = F.max_pool2d(self.group3(self.group2(x)), 3)
        return self.head(x.flatten(1)) / 256
