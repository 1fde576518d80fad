"""The networks in stock flax.linen, in training, with the names of our parameters."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from benchmarks.benchmark import Benchmark

dropout = partial(nn.Dropout, deterministic=False)
batch_norm = partial(nn.BatchNorm, use_running_average=False, momentum=0.9)


def make(bench: Benchmark, exact: bool) -> nn.Module:
    """The network of a row; with `exact` without dropout."""
    nets = {"allcnn_c": AllCNNC, "nin": NiN, "vgg16_cifar": VGG16}
    if bench.net in nets:
        return nets[bench.net](bench.classes, not exact)
    basic = {"resnet18": (2, 2, 2, 2)}
    stages = basic.get(bench.net, (3, 4, 6, 3))
    return ResNet(bench.classes, stages, bench.net not in basic, jnp.dtype(bench.dtype))


class AllCNNC(nn.Module):
    """All-CNN-C, arXiv:1412.6806."""

    classes: int
    dropout: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits [N, classes] of images [N, H, W, C]."""
        x = dropout(0.2 * self.dropout)(x)
        for block, width in enumerate((96, 192)):
            for layer, stride in enumerate((1, 1, 2), start=3 * block + 1):
                conv = nn.Conv(width, (3, 3), stride, padding=1, name=f"conv{layer}")
                x = nn.relu(conv(x))
            x = dropout(0.5 * self.dropout)(x)
        x = nn.relu(nn.Conv(192, (3, 3), padding="VALID", name="conv7")(x))
        x = nn.relu(nn.Conv(192, (1, 1), name="conv8")(x))
        x = nn.relu(nn.Conv(self.classes, (1, 1), name="conv9")(x))
        return x.mean((1, 2))


class MlpConv(nn.Module):
    """A convolution and 1x1 convolutions, ReLU after each."""

    widths: tuple[int, ...]
    size: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i, width in enumerate(self.widths):
            kernel = (1, 1) if i else (self.size, self.size)
            x = nn.relu(nn.Conv(width, kernel, name=f"conv{i}")(x))
        return x


class NiN(nn.Module):
    """Network in Network, arXiv:1312.4400."""

    classes: int
    dropout: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for number, size, widths in (
            (1, 5, (192, 160, 96)), (2, 5, (192, 192, 192)),
        ):  # fmt: skip
            x = MlpConv(widths, size, name=f"mlpconv{number}")(x)
            x = nn.max_pool(x, (3, 3), (2, 2), ((0, 1), (0, 1)))
            x = dropout(0.5 * self.dropout)(x)
        x = MlpConv((192, 192), 3, name="mlpconv3")(x)
        x = MlpConv((self.classes,), 1, name="classifier")(x)
        return x.mean((1, 2))


class VGG16(nn.Module):
    """VGG-16 for 32 pixels: a last map of 1x1, no dropout."""

    classes: int
    dropout: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        index = 0  # in torchvision's list of layers
        for width, layers in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
            for _ in range(layers):
                conv = nn.Conv(width, (3, 3), padding=1, name=f"features.{index}")
                x = nn.relu(conv(x))
                index += 2
            x = nn.max_pool(x, (2, 2), (2, 2))
            index += 1
        x = x.reshape(len(x), -1)
        x = nn.relu(nn.Dense(4096, name="classifier.0")(x))
        x = nn.relu(nn.Dense(4096, name="classifier.3")(x))
        return nn.Dense(self.classes, name="classifier.6")(x)


class Block(nn.Module):
    """A residual block, basic or a bottleneck."""

    width: int
    stride: int
    bottleneck: bool
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = partial(nn.Conv, use_bias=False, dtype=self.dtype)
        norm = partial(batch_norm, epsilon=1e-5, dtype=self.dtype)
        residual, stride = x, self.stride
        if self.bottleneck:
            layers = [(1, self.width, 1), (3, self.width, stride),
                      (1, 4 * self.width, 1)]  # fmt: skip
        else:
            layers = [(3, self.width, stride), (3, self.width, 1)]
        for i, (size, width, step) in enumerate(layers, start=1):
            x = conv(width, (size, size), step, size // 2, name=f"conv{i}")(x)
            x = norm(name=f"bn{i}")(x)
            x = nn.relu(x) if i < len(layers) else x
        if residual.shape != x.shape:
            residual = conv(x.shape[-1], (1, 1), stride, name="downsample.0")(residual)
            residual = norm(name="downsample.1")(residual)
        return nn.relu(x + residual)


class ResNet(nn.Module):
    """ResNet v1.5 as in the Flax ImageNet example, but for torchvision's padding."""

    classes: int
    stages: tuple[int, ...]
    bottleneck: bool
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(64, (7, 7), (2, 2), padding=3, use_bias=False, dtype=self.dtype,
                    name="conv1")(x)  # fmt: skip
        x = batch_norm(epsilon=1e-5, dtype=self.dtype, name="bn1")(x)
        x = nn.max_pool(nn.relu(x), (3, 3), (2, 2), ((1, 1), (1, 1)))
        for i, blocks in enumerate(self.stages):
            for j in range(blocks):
                block = Block(64 * 2**i, 2 if i > 0 and j == 0 else 1, self.bottleneck,
                              self.dtype, name=f"layer{i + 1}.{j}")  # fmt: skip
                x = block(x)
        x = nn.Dense(self.classes, dtype=self.dtype, name="fc")(x.mean((1, 2)))
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))
