"""MobileNetV2: Inverted Residuals and Linear Bottlenecks.

Sandler, Howard, Zhu, Zhmoginov, Chen, 2018 (arXiv:1801.04381).

A residual block turned inside out: the shortcut joins the narrow ends, and what is
added to it is computed at six times their width, by a depthwise convolution. The narrow
ends are linear: a ReLU there would lose what the few channels hold.

The first block does not widen its input, and as in torchvision its first convolution
is left out. Weights are drawn as torchvision draws them: He's normal distribution by
the outputs of a unit, N(0, 0.01) in the classifier.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from flaxcnn.errors import FlaxcnnError
from flaxcnn.layers import BatchNorm, Conv, global_avg_pool, relu6
from flaxcnn.layers.head import classify
from flaxcnn.layers.init import he_normal_fan_out
from flaxcnn.layers.input import check_images
from flaxcnn.registry import Info, register

# Table 2: expansion t, channels c, blocks n, stride s of the first of them.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def scaled(channels: int, multiplier: float) -> int:
    """channels * multiplier as a multiple of 8: the nearest that keeps 9 in 10.

    Raises FlaxcnnError unless the multiplier is positive.
    """
    if multiplier <= 0:
        raise FlaxcnnError(f"width multiplier {multiplier} is not positive; 1 is usual")
    width = channels * multiplier
    nearest = max(8, int(width + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * width else nearest + 8


def conv_bn(
    x: jax.Array, features: int, kernel: int, train: bool, name: str, first: int = 0,
    stride: int = 1, groups: int = 1,
) -> jax.Array:  # fmt: skip
    """A convolution without bias, padded to keep the size, and BatchNorm.

    They are `first` and the next of the torch Sequential `name`.
    """
    x = Conv(features, (kernel, kernel), stride, kernel // 2, use_bias=False,
             feature_group_count=groups, kernel_init=he_normal_fan_out,
             dtype=x.dtype, name=f"{name}.{first}")(x)  # fmt: skip
    return BatchNorm(dtype=x.dtype, name=f"{name}.{first + 1}")(x, train=train)


class InvertedResidual(nn.Module):
    """Table 1: [N, H, W, C] to [N, H/s, W/s, features].

    Attributes:
      features: channels of the output.
      stride: of the block.
      expansion: channels inside over those of the input, t.
    """

    features: int
    stride: int
    expansion: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        width = x.shape[-1] * self.expansion
        y, i = x, 0
        if self.expansion > 1:
            y, i = relu6(conv_bn(x, width, 1, train, "conv.0")), 1
        y = conv_bn(y, width, 3, train, f"conv.{i}", stride=self.stride, groups=width)
        y = conv_bn(relu6(y), self.features, 1, train, "conv", first=i + 1)
        residual = self.stride == 1 and x.shape[-1] == self.features
        return x + y if residual else y


@register("mobilenet_v2", info=Info(
    params=3_504_872, macs=300_774_272, paper="1801.04381"))  # fmt: skip
class MobileNetV2(nn.Module):
    """Table 2.

    Endpoints: "block1" to "block7", a line of `STAGES` each, of strides 2, 4, 8, 16,
    16, 32, 32 and 16, 24, 32, 64, 96, 160, 320 channels; "conv_head", the last
    convolution, of stride 32 and 1280 channels.

    Attributes:
      num_classes: number of classes; 0 returns pooled features, [N, 1280].
      width_multiplier: of all channels; below 1, not of the last convolution's.
      dropout: rate of dropout before the classifier.
      dtype: of the computation; parameters stay float32, logits at least that.
    """

    num_classes: int = 1000
    width_multiplier: float = 1.0
    dropout: float = 0.2
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool, endpoints: bool = False
    ) -> jax.Array | tuple[jax.Array, dict[str, jax.Array]]:
        """Logits [N, num_classes] of images [N, H, W, C] of any size."""
        check_images("MobileNetV2", x)
        stem = scaled(32, self.width_multiplier)
        last = scaled(1280, max(1.0, self.width_multiplier))
        ends = {}

        x = conv_bn(x.astype(self.dtype), stem, 3, train, "features.0", stride=2)
        x = relu6(x)  # [N, 112, 112, 32]
        index = 0
        for block, (expansion, channels, blocks, stride) in enumerate(STAGES, start=1):
            for i in range(blocks):
                index += 1
                x = InvertedResidual(
                    scaled(channels, self.width_multiplier), stride if i == 0 else 1,
                    expansion, name=f"features.{index}",
                )(x, train=train)  # fmt: skip
            ends[f"block{block}"] = x  # [N, 112, 112, 16], ..., [N, 7, 7, 320]
        x = relu6(conv_bn(x, last, 1, train, "features.18"))
        ends["conv_head"] = x  # [N, 7, 7, 1280]
        x = ends["pre_logits"] = global_avg_pool(x)
        init = nn.initializers.normal(0.01)
        x = classify(x, self.num_classes, "classifier.1", train=train,
                     dropout=self.dropout, kernel_init=init)  # fmt: skip
        return (x, ends) if endpoints else x
