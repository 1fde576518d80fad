"""The networks in PyTorch: torchvision's, and by hand what it has not."""

from collections import OrderedDict
from typing import Any

import torch
from torch import nn

from benchmarks.benchmark import Benchmark


def make(bench: Benchmark) -> nn.Module:
    """The network of a row, with the names of our parameters."""
    by_hand = {"allcnn_c": allcnn_c, "nin": nin, "vgg16_cifar": vgg16_cifar}
    if bench.net in by_hand:
        return by_hand[bench.net](bench.classes)
    if bench.net == "airbench94":
        from benchmarks.peers.airbench import Airbench94

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
