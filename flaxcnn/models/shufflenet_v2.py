"""ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design.

Ma, Zhang, Zheng, Sun, 2018 (arXiv:1807.11164).

A block splits its channels in two halves: one is left as it is, the other goes through
a 1x1, a depthwise 3x3 and a 1x1 convolution of its own width. Side by side again, the
channels are shuffled, so that the next block's halves have some of both. The first
block of a stage, of stride 2, has no split: both branches convolve the whole input.

Weights are drawn as torchvision draws them, by torch's defaults.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from flaxcnn.layers import BatchNorm, Conv, global_avg_pool, max_pool, relu
from flaxcnn.layers.head import classify
from flaxcnn.layers.init import torch_uniform
from flaxcnn.layers.input import check_images
from flaxcnn.registry import Info, register


def channel_shuffle(x: jax.Array, groups: int) -> jax.Array:
    """Channel j of group i becomes channel i of group j, [N, H, W, C] to the same."""
    parts = x.reshape(*x.shape[:-1], groups, -1)
    return parts.swapaxes(-1, -2).reshape(x.shape)


def conv_bn(
    x: jax.Array, features: int, kernel: int, stride: int, train: bool, name: str,
    first: int = 0, depthwise: bool = False,
) -> jax.Array:  # fmt: skip
    """A convolution that keeps the size, `name.first`, and the BatchNorm after it.

    ReLU follows unless it is depthwise.
    """
    groups = features if depthwise else 1
    init = torch_uniform(kernel**2 * x.shape[-1] // groups)
    x = Conv(features, (kernel, kernel), stride, kernel // 2, use_bias=False,
             feature_group_count=groups, kernel_init=init, dtype=x.dtype,
             name=f"{name}.{first}")(x)  # fmt: skip
    x = BatchNorm(dtype=x.dtype, name=f"{name}.{first + 1}")(x, train=train)
    return x if depthwise else relu(x)


class ShuffleBlock(nn.Module):
    """Figure 3 (c), of stride 2 (d): [N, H, W, C] to [N, H/s, W/s, features].

    Attributes:
      features: channels of the output; of the input too if the stride is 1.
      stride: of the block.
    """

    features: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        half = self.features // 2
        if self.stride == 1:
            left, right = jnp.split(x, 2, -1)
        else:
            left = conv_bn(x, x.shape[-1], 3, self.stride, train, "branch1",
                           depthwise=True)  # fmt: skip
            left, right = conv_bn(left, half, 1, 1, train, "branch1", first=2), x
        right = conv_bn(right, half, 1, 1, train, "branch2")
        right = conv_bn(right, half, 3, self.stride, train, "branch2", first=3,
                        depthwise=True)  # fmt: skip
        right = conv_bn(right, half, 1, 1, train, "branch2", first=5)
        return channel_shuffle(jnp.concatenate([left, right], -1), 2)


@register("shufflenet_v2_x0_5", widths=(48, 96, 192, 1024), info=Info(
    params=1_366_792, macs=40_476_448, paper="1807.11164"))  # fmt: skip
@register("shufflenet_v2_x1_0", widths=(116, 232, 464, 1024), info=Info(
    params=2_278_604, macs=144_907_992, paper="1807.11164"))  # fmt: skip
@register("shufflenet_v2_x1_5", widths=(176, 352, 704, 1024), info=Info(
    params=3_503_624, macs=295_759_392, paper="1807.11164"))  # fmt: skip
@register("shufflenet_v2_x2_0", widths=(244, 488, 976, 2048), info=Info(
    params=7_393_996, macs=583_253_464, paper="1807.11164"))  # fmt: skip
class ShuffleNetV2(nn.Module):
    """Table 5.

    Endpoints: "stem" [N, H/4, W/4, 24]; "stage2" to "stage4", of strides 8, 16, 32,
    and "conv5", of stride 32, with the channels of `widths`.

    Attributes:
      num_classes: number of classes; 0 returns pooled features, [N, widths[-1]].
      widths: channels of the three stages and of the last convolution.
      dtype: of the computation; parameters stay float32, logits at least that.
    """

    num_classes: int = 1000
    widths: tuple[int, ...] = (116, 232, 464, 1024)
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool, endpoints: bool = False
    ) -> jax.Array | tuple[jax.Array, dict[str, jax.Array]]:
        """Logits [N, num_classes] of images [N, H, W, C] of any size."""
        check_images("ShuffleNetV2", x)
        *stages, last = self.widths
        ends = {}

        x = conv_bn(x.astype(self.dtype), 24, 3, 2, train, "conv1")  # [N, 112, 112, 24]
        x = ends["stem"] = max_pool(x, 3, 2, padding=1)  # [N, 56, 56, 24]
        for stage, (width, blocks) in enumerate(zip(stages, (4, 8, 4), strict=True), 2):
            for i in range(blocks):
                block = ShuffleBlock(
                    width, 2 if i == 0 else 1, name=f"stage{stage}.{i}"
                )
                x = block(x, train=train)
            ends[f"stage{stage}"] = x  # [N, 28, 28, 116], ..., [N, 7, 7, 464]
        x = ends["conv5"] = conv_bn(x, last, 1, 1, train, "conv5")  # [N, 7, 7, 1024]
        x = ends["pre_logits"] = global_avg_pool(x)
        x = classify(x, self.num_classes, "fc", train=train)
        return (x, ends) if endpoints else x
