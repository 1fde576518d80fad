"""BN-Inception against torch modules built from slim's table."""

import jax
import jax.numpy as jnp
import pytest

import flaxcnn

# in: 1x1 | 1x1, 3x3 | 1x1, 3x3, 3x3 | pooling, 1x1
TABLE = """
Mixed_3b 192: 64  | 64 64   | 64 96 96    | avg 32
Mixed_3c 256: 64  | 64 96   | 64 96 96    | avg 64
Mixed_4a 320:     | 128 160 | 64 96 96    | max
Mixed_4b 576: 224 | 64 96   | 96 128 128  | avg 128
Mixed_4c 576: 192 | 96 128  | 96 128 128  | avg 128
Mixed_4d 576: 160 | 128 160 | 128 160 160 | avg 96
Mixed_4e 576: 96  | 128 192 | 160 192 192 | avg 96
Mixed_5a 576:     | 128 192 | 192 256 256 | max
Mixed_5b 1024: 352 | 192 320 | 160 224 224 | avg 128
Mixed_5c 1024: 352 | 192 320 | 192 224 224 | max 128
"""


def torch_bn_inception():
    """The network with 7 classes."""
    nn = pytest.importorskip("torch.nn")
    from tests.parity.reference import Concatenation, sequence

    def conv(channels, features, kernel=1, stride=1):
        layer = nn.Conv2d(channels, features, kernel, stride, kernel // 2, bias=False)
        return sequence(conv=layer, bn=nn.BatchNorm2d(features, 1e-3), relu=nn.ReLU())

    def chain(channels, widths, stride):
        reduced, *widths = map(int, widths.split())
        layers = [conv(channels, reduced)]
        for i, width in enumerate(widths, start=1):
            layers.append(conv(reduced, width, 3, stride if i == len(widths) else 1))
            reduced = width
        return nn.Sequential(*layers)

    def block(channels, ones, threes, doubles, pooling):
        stride = 1 if ones.strip() else 2
        kind, *projection = pooling.split()
        if kind == "max":
            pool = nn.MaxPool2d(3, stride, 1)
        else:
            pool = nn.AvgPool2d(3, stride, 1, count_include_pad=False)
        first = {"branch1": conv(channels, int(ones))} if stride == 1 else {}
        last = [conv(channels, int(width)) for width in projection]
        return sequence(
            Concatenation,
            **first,
            branch2=chain(channels, threes, stride),
            branch3=chain(channels, doubles, stride),
            branch4=nn.Sequential(pool, *last),
        )

    blocks = {}
    for row in TABLE.strip().splitlines():
        head, widths = row.split(":")
        name, channels = head.split()
        blocks[name] = block(int(channels), *widths.split("|"))
    return sequence(
        Conv2d_1a_7x7=conv(3, 64, 7, 2), pool1=nn.MaxPool2d(3, 2, 1),
        Conv2d_2b_1x1=conv(64, 64), Conv2d_2c_3x3=conv(64, 192, 3),
        pool2=nn.MaxPool2d(3, 2, 1), **blocks,
        pool3=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), dropout=nn.Dropout(0.2),
        fc=nn.Linear(1024, 7),
    )  # fmt: skip


@pytest.mark.long
def test_against_torch():
    net = torch_bn_inception()
    from tests.parity.reference import (
        compare_evaluation,
        compare_gradients,
        compare_training,
        images,
        randomize,
    )

    randomize(net)
    compare_evaluation("bn_inception", net, images(97, 66), num_classes=7)
    compare_training("bn_inception", net, images(64, 64, 4), num_classes=7)
    compare_gradients("bn_inception", net, images(64, 64, 2), num_classes=7)


@pytest.mark.parametrize("size", [(1, 1), (33, 130)])
def test_any_size(size):
    model = flaxcnn.create_model("bn_inception")

    def apply():
        x = jnp.zeros((1, *size, 3))
        return model.init_with_output(jax.random.key(0), x, train=False, endpoints=True)

    (_, ends), _ = jax.eval_shape(apply)
    height, width = (-(-side // 32) for side in size)
    assert ends["Mixed_5c"].shape == (1, height, width, 1024)
