"""Densely Connected Convolutional Networks.

Huang, Liu, van der Maaten, Weinberger, 2016 (arXiv:1608.06993).

Within a block every layer reads the feature maps of all layers before it, side by
side, and adds k of its own (k, the growth rate): layer l of a block that starts with
c channels has c + (l - 1) k inputs. This is DenseNet-BC, with bottlenecks (B: a 1x1
convolution to 4k channels before the 3x3) and compression (C: the transition between
two blocks halves the channels, then the size).

BatchNorm and ReLU come before a convolution, not after it. As in torchvision, weights
are drawn from He's normal distribution by the inputs of a unit, the classifier's by
torch's default, its biases are 0.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from flaxcnn.layers import (
    BatchNorm,
    Conv,
    Dropout,
    avg_pool,
    global_avg_pool,
    max_pool,
    relu,
)
from flaxcnn.layers.head import classify
from flaxcnn.layers.init import he_normal_fan_in, torch_uniform
from flaxcnn.layers.input import check_images
from flaxcnn.registry import Info, register


def norm_relu(x: jax.Array, train: bool, name: str) -> jax.Array:
    """Batch normalisation and ReLU."""
    return relu(BatchNorm(dtype=x.dtype, name=name)(x, train=train))


def conv(
    x: jax.Array, features: int, kernel: int, name: str, stride: int = 1
) -> jax.Array:
    """A convolution without bias, padded to keep the size."""
    return Conv(features, (kernel, kernel), stride, kernel // 2, use_bias=False,
                kernel_init=he_normal_fan_in, dtype=x.dtype, name=name)(x)  # fmt: skip


class DenseLayer(nn.Module):
    """The function H of equation 2: [N, H, W, C] to [N, H, W, growth_rate].

    Attributes:
      growth_rate: channels of its output, k.
      dropout: rate of dropout at its end.
    """

    growth_rate: int
    dropout: float

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = norm_relu(x, train, "norm1")
        x = conv(x, 4 * self.growth_rate, 1, "conv1")
        x = norm_relu(x, train, "norm2")
        x = conv(x, self.growth_rate, 3, "conv2")
        return Dropout(self.dropout)(x, train=train)


@register("densenet121", blocks=(6, 12, 24, 16), info=Info(
    params=7_978_856, macs=2_834_161_664, paper="1608.06993"))  # fmt: skip
@register("densenet161", blocks=(6, 12, 36, 24), growth_rate=48, info=Info(
    params=28_681_000, macs=7_727_907_072, paper="1608.06993"))  # fmt: skip
@register("densenet169", blocks=(6, 12, 32, 32), info=Info(
    params=14_149_480, macs=3_359_843_328, paper="1608.06993"))  # fmt: skip
@register("densenet201", blocks=(6, 12, 48, 32), info=Info(
    params=20_013_928, macs=4_291_365_888, paper="1608.06993"))  # fmt: skip
class DenseNet(nn.Module):
    """Table 1.

    Endpoints: "stem" [N, H/4, W/4, 2k]; "denseblock1" to "denseblock4", of strides 4,
    8, 16, 32 and (densenet121) 256, 512, 1024, 1024 channels.

    Attributes:
      num_classes: number of classes; 0 returns pooled features, [N, 1024], 2208, 1664
        and 1920 for densenet121, 161, 169 and 201.
      blocks: layers of each dense block.
      growth_rate: channels that a layer adds, k; the first convolution has 2k.
      dropout: rate of dropout after each layer (the paper's 0.2 for small data sets).
      dtype: of the computation; parameters stay float32, logits at least that.
    """

    num_classes: int = 1000
    blocks: tuple[int, ...] = (6, 12, 24, 16)
    growth_rate: int = 32
    dropout: float = 0.0
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool, endpoints: bool = False
    ) -> jax.Array | tuple[jax.Array, dict[str, jax.Array]]:
        """Logits [N, num_classes] of images [N, H, W, C], H and W at least 29."""
        check_images("DenseNet", x, min_size=29)
        ends = {}

        x = x.astype(self.dtype)
        x = conv(x, 2 * self.growth_rate, 7, "features.conv0", stride=2)
        x = norm_relu(x, train, "features.norm0")  # [N, 112, 112, 64]
        x = ends["stem"] = max_pool(x, 3, 2, padding=1)  # [N, 56, 56, 64]
        for i, layers in enumerate(self.blocks, start=1):
            if i > 1:
                name = f"features.transition{i - 1}"
                x = norm_relu(x, train, f"{name}.norm")
                x = conv(x, x.shape[-1] // 2, 1, f"{name}.conv")
                x = avg_pool(x, 2)  # [N, 28, 28, 128], ..., [N, 7, 7, 512]
            for j in range(1, layers + 1):
                name = f"features.denseblock{i}.denselayer{j}"
                layer = DenseLayer(self.growth_rate, self.dropout, name=name)
                x = jnp.concatenate([x, layer(x, train=train)], -1)
            ends[f"denseblock{i}"] = x  # [N, 56, 56, 256], ..., [N, 7, 7, 1024]
        x = norm_relu(x, train, "features.norm5")
        x = ends["pre_logits"] = global_avg_pool(x)
        init = torch_uniform(x.shape[-1])
        x = classify(x, self.num_classes, "classifier", train=train, kernel_init=init)
        return (x, ends) if endpoints else x
