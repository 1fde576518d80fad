"""ResNets that torchvision lacks: shortcuts, the paper's bottleneck, CIFAR, EvoNorm.

Each against a torch network with the same random weights: one written here from the
paper, or torchvision's with some of its modules replaced.
"""

import functools

import pytest
import torch
import torchvision
from timm.layers import evo_norm
from torch import nn
from torch.nn import functional

from flaxcnn.weights import from_torch
from tests.parity.reference import (
    compare_evaluation,
    compare_gradients,
    compare_training,
    images,
    randomize,
)
from tests.paths import REAL_DATA

PUBLISHED = REAL_DATA / "weights" / "resnet20-12fca82f.th"
KINDS = ("b0", "b1", "b2", "s0", "s1", "s2")


class Nothing(nn.Module):
    """The shortcut of a plain network."""

    def forward(self, x):
        return x.new_zeros(())


class Padded(nn.Module):
    """Option A: every other pixel, new channels of zeros on both sides."""

    def __init__(self, stride, extra):
        super().__init__()
        self.stride, self.extra = stride, extra

    def forward(self, x):
        x = x[:, :, :: self.stride, :: self.stride]
        return functional.pad(x, (0, 0, 0, 0, self.extra // 2, self.extra // 2))


def shortcut(option, before, after, stride, norm=nn.BatchNorm2d):
    """What the block's input goes through on its way to the addition."""
    if option == "none":
        return Nothing()
    changes = stride != 1 or before != after
    if option == "C" or (option == "B" and changes):
        conv = nn.Conv2d(before, after, 1, stride, bias=False)
        return nn.Sequential(conv, norm(after))
    return Padded(stride, after - before) if changes else nn.Identity()


def evonorm(kind, channels, apply_act=True):
    """timm's, less a running variance where nothing reads it."""
    fields = {"groups": min(32, channels)} if kind.startswith("s") else {}
    layer = getattr(evo_norm, f"EvoNorm2d{kind.upper()}")
    layer = layer(channels, apply_act=apply_act, **fields)
    if kind.startswith("b") and not apply_act:
        del layer.running_var
    return layer


def norms(kind):
    """The normalisation, that at the end of a branch, and what follows the first."""
    if kind is None:
        return nn.BatchNorm2d, nn.BatchNorm2d, nn.ReLU()
    norm = functools.partial(evonorm, kind)
    return norm, functools.partial(norm, apply_act=False), nn.Identity()


class CIFARBlock(nn.Module):
    def __init__(self, before, width, stride, option, kind):
        super().__init__()
        norm, last, self.act = norms(kind)
        self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.bn1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = last(width)
        self.downsample = shortcut(option, before, width, stride, last)

    def forward(self, x):
        y = self.bn2(self.conv2(self.act(self.bn1(self.conv1(x)))))
        return functional.relu(y + self.downsample(x))


class CIFAR(nn.Module):
    """Section 4.2 of arXiv:1512.03385, with the keys of the published weights."""

    def __init__(self, n=3, option="A", kind=None):
        super().__init__()
        norm, _, self.act = norms(kind)
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = norm(16)
        before = 16
        for stage, width in enumerate((16, 32, 64), start=1):
            blocks = []
            for i in range(n):
                stride = 2 if stage > 1 and i == 0 else 1
                blocks.append(CIFARBlock(before, width, stride, option, kind))
                before = width
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        self.linear = nn.Linear(64, 10)

    def forward(self, x):
        x = self.act(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


class EvoBottleneck(torchvision.models.resnet.Bottleneck):
    """torchvision's with a projection; its only ReLU comes after the addition."""

    def forward(self, x):
        y = self.bn2(self.conv2(self.bn1(self.conv1(x))))
        y = self.bn3(self.conv3(y))
        return functional.relu(y + self.downsample(x))


def random_weights(net):
    """`randomize`, and timm's EvoNorms too."""
    torch.manual_seed(0)
    ranges = {"weight": (0.6, 1.4), "bias": (-0.3, 0.3), "v": (-1, 2),
              "running_var": (0.6, 1.4)}  # fmt: skip
    for module in net.modules():
        if type(module).__module__ == evo_norm.__name__:
            for name, (low, high) in ranges.items():
                if getattr(module, name, None) is not None:
                    nn.init.uniform_(getattr(module, name), low, high)
    return randomize(net)


def cifar(**fields):
    return random_weights(CIFAR(**fields))


def imagenet(name, option):
    """torchvision's with the shortcuts of another option."""
    net = getattr(torchvision.models, name)()
    for module in net.modules():
        if hasattr(module, "downsample"):
            last = module.conv3 if hasattr(module, "conv3") else module.conv2
            module.downsample = shortcut(
                option, module.conv1.in_channels, last.out_channels, module.stride
            )
    return random_weights(net)


@pytest.mark.parametrize("option", ["none", "A", "B", "C"])
def test_cifar_evaluation(option):
    """At the standard size and at an odd one, where both paths must round alike."""
    for shape in ((32, 32), (35, 29)):
        compare_evaluation("resnet20_cifar", cifar(option=option), images(*shape, 2),
                           {"stem": "act"}, shortcut=option)  # fmt: skip


@pytest.mark.parametrize("option", ["A", "B"])
def test_cifar_training(option):
    net = cifar(option=option)
    compare_training("resnet20_cifar", net, images(35, 29, batch=4), shortcut=option)


@pytest.mark.long
@pytest.mark.parametrize(("option", "train"), [("A", False), ("A", True), ("B", True)])
def test_cifar_gradients(option, train):
    fields = {"n": 1, "shortcut": option}
    net = cifar(n=1, option=option)
    x = images(32, 32, batch=2)
    compare_gradients("resnet20_cifar", net, x, train=train, **fields)


@pytest.mark.skipif(not PUBLISHED.exists(), reason="needs ../shared/data/weights")
def test_cifar_published_weights():
    """Their keys are torch's here and ours; both networks then see the same."""
    saved = torch.load(PUBLISHED, map_location="cpu", weights_only=True)["state_dict"]
    state = {key.removeprefix("module."): value for key, value in saved.items()}
    assert len(state) == len(saved)
    from_torch("resnet20_cifar", state)
    net = CIFAR()
    # The file is older than torch's counters of batches.
    assert all("num_batches" in k for k in net.load_state_dict(state, False)[0])
    compare_evaluation("resnet20_cifar", net, images(32, 32, 2), {"stem": "act"})


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "fields", "torchvisions"),
    [
        ("plain18", {}, "resnet18"),
        ("resnet18", {"shortcut": "A"}, "resnet18"),
        ("resnet18", {"shortcut": "C"}, "resnet18"),
        ("resnet50", {"shortcut": "A"}, "resnet50"),
        ("resnet50", {"shortcut": "C"}, "resnet50"),
    ],
)
def test_imagenet_shortcuts(name, fields, torchvisions):
    net = imagenet(torchvisions, fields.get("shortcut", "none"))
    compare_evaluation(name, net, images(64, 70), {"stem": "maxpool"}, **fields)


@pytest.mark.long
def test_stride_in_1x1():
    """The paper's bottleneck: torchvision's, whose 3x3 convolution strides."""
    net = random_weights(torchvision.models.resnet50())
    for stage in (net.layer2, net.layer3, net.layer4):
        assert stage[0].conv2.stride == (2, 2)
        stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    compare_evaluation("resnet50", net, images(97, 64), {"stem": "maxpool"},
                       stride_in_1x1=True)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_cifar_evonorm(kind):
    """From timm's keys: weight, bias, v and running_var."""
    fields = {"n": 1, "shortcut": "C", "norm": f"evonorm_{kind}"}
    net = cifar(n=1, option="C", kind=kind)
    compare_evaluation(
        "resnet20_cifar", net, images(35, 29, 2), {"stem": "act"}, **fields
    )
    compare_training("resnet20_cifar", net, images(32, 32, 4), **fields)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["b0", "s0"])
def test_cifar_evonorm_gradients(kind):
    fields = {"n": 1, "shortcut": "B", "norm": f"evonorm_{kind}"}
    net = cifar(n=1, option="B", kind=kind)
    x = images(32, 32, batch=2)
    compare_gradients("resnet20_cifar", net, x, train=True, **fields)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["b0", "s0"])
def test_imagenet_evonorm(kind):
    """The stem and bottlenecks, one of each stage."""
    norm, last, act = norms(kind)
    net = torchvision.models.ResNet(EvoBottleneck, [1, 1, 1, 1], norm_layer=norm)
    net.relu = act
    for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
        channels = stage[0].conv3.out_channels
        stage[0].bn3, stage[0].downsample[1] = last(channels), last(channels)
    random_weights(net)
    fields = {"stages": (1, 1, 1, 1), "norm": f"evonorm_{kind}"}
    compare_evaluation("resnet50", net, images(97, 64), {"stem": "maxpool"}, **fields)
    if kind == "b0":  # S0 has no statistics
        compare_training("resnet50", net, images(64, 70, 4), **fields)
