"""MnasNet: Platform-Aware Neural Architecture Search for Mobile.

Tan, Chen, Pang, Vasudevan, Sandler, Howard, Le, 2018 (arXiv:1807.11626).

Found by a search that measures accuracy and, on a phone, latency. Unlike searches for
one cell that is repeated, this one lets every stage have its own kernel size, expansion
and depth, of MobileNetV2's inverted residual blocks.

These are B1, the networks without squeeze-and-excitation, as torchvision has them: ReLU
instead of ReLU6, a stem that is scaled too (version 2 of torchvision's state_dicts),
and statistics that move slowly. Weights are drawn as there: He's normal distribution by
the outputs of a unit, in the classifier U(-sqrt(3/classes), sqrt(3/classes)).
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from flaxcnn.layers import BatchNorm, Conv, global_avg_pool, relu
from flaxcnn.layers.head import classify
from flaxcnn.layers.init import he_normal_fan_out
from flaxcnn.layers.input import check_images
from flaxcnn.models.mobilenet_v2 import scaled
from flaxcnn.registry import Info, register

# Kernel, channels, stride of the first block, expansion, blocks.
STAGES = (
    (3, 24, 2, 3, 3),
    (5, 40, 2, 3, 3),
    (5, 80, 2, 6, 3),
    (3, 96, 1, 6, 2),
    (5, 192, 2, 6, 4),
    (3, 320, 1, 6, 1),
)


def conv_bn(
    x: jax.Array, features: int, kernel: int, train: bool, first: int,
    stride: int = 1, groups: int = 1,
) -> jax.Array:  # fmt: skip
    """A convolution without bias, padded to keep the size, and BatchNorm.

    They are `first` and the next of the torch Sequential `layers`.
    """
    x = Conv(features, (kernel, kernel), stride, kernel // 2, use_bias=False,
             feature_group_count=groups, kernel_init=he_normal_fan_out,
             dtype=x.dtype, name=f"layers.{first}")(x)  # fmt: skip
    norm = BatchNorm(momentum=3e-4, dtype=x.dtype, name=f"layers.{first + 1}")
    return norm(x, train=train)


class InvertedResidual(nn.Module):
    """Widen, convolve each channel, narrow: [N, H, W, C] to [N, H/s, W/s, features].

    Attributes:
      features: channels of the output.
      kernel: size of the depthwise convolution's kernel.
      stride: of the block.
      expansion: channels inside over those of the input.
    """

    features: int
    kernel: int
    stride: int
    expansion: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        width = x.shape[-1] * self.expansion
        y = relu(conv_bn(x, width, 1, train, 0))
        y = conv_bn(y, width, self.kernel, train, 3, stride=self.stride, groups=width)
        y = conv_bn(relu(y), self.features, 1, train, 6)
        residual = self.stride == 1 and x.shape[-1] == self.features
        return x + y if residual else y


@register("mnasnet0_5", width_multiplier=0.5, info=Info(
    params=2_218_512, macs=104_455_968, paper="1807.11626"))  # fmt: skip
@register("mnasnet0_75", width_multiplier=0.75, info=Info(
    params=3_170_208, macs=215_493_104, paper="1807.11626"))  # fmt: skip
@register("mnasnet1_0", info=Info(
    params=4_383_312, macs=314_415_872, paper="1807.11626"))  # fmt: skip
@register("mnasnet1_3", width_multiplier=1.3, info=Info(
    params=6_282_256, macs=526_362_432, paper="1807.11626"))  # fmt: skip
class MNASNet(nn.Module):
    """MnasNet-B1.

    Endpoints: "block1", the separable convolution, and "block2" to "block7", a line of
    `STAGES` each, of strides 2, 4, 8, 16, 16, 32, 32 and (mnasnet1_0) 16, 24, 40, 80,
    96, 192, 320 channels; "conv_head", the last convolution, of stride 32 and 1280
    channels.

    Attributes:
      num_classes: number of classes; 0 returns pooled features, [N, 1280].
      width_multiplier: of all channels but the last convolution's.
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
        check_images("MNASNet", x)
        stem, first = (scaled(c, self.width_multiplier) for c in (32, 16))
        ends = {}

        x = relu(conv_bn(x.astype(self.dtype), stem, 3, train, 0, stride=2))
        x = relu(conv_bn(x, stem, 3, train, 3, groups=stem))
        x = ends["block1"] = conv_bn(x, first, 1, train, 6)  # [N, 112, 112, 16]
        for block, (kernel, channels, stride, expansion, n) in enumerate(STAGES, 2):
            for i in range(n):
                x = InvertedResidual(
                    scaled(channels, self.width_multiplier), kernel,
                    stride if i == 0 else 1, expansion, name=f"layers.{block + 6}.{i}",
                )(x, train=train)  # fmt: skip
            ends[f"block{block}"] = x  # [N, 56, 56, 24], ..., [N, 7, 7, 320]
        x = ends["conv_head"] = relu(conv_bn(x, 1280, 1, train, 14))
        x = ends["pre_logits"] = global_avg_pool(x)
        init = nn.initializers.variance_scaling(1.0, "fan_out", "uniform")
        x = classify(x, self.num_classes, "classifier.1", train=train,
                     dropout=self.dropout, kernel_init=init)  # fmt: skip
        return (x, ends) if endpoints else x
