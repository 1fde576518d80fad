"""Batch Normalization: Accelerating Deep Network Training by Reducing Internal
Covariate Shift.

Ioffe, Szegedy, 2015 (arXiv:1502.03167): BN-Inception, or Inception v2.

GoogLeNet with BatchNorm behind every convolution, and two 3x3 convolutions in place
of the 5x5. Two modules of stride 2 take over from poolings between the modules.

The blocks are those of the release in TensorFlow-slim, under its names, with these
differences: the first convolution is the paper's plain 7x7 (slim's is separable);
BatchNorm has a scale; padding is symmetric as in torch, where slim's SAME puts the
odd pixel of a stride-2 layer at the end. Average pooling leaves the padding out of
its mean, as SAME does. All weights are drawn as slim draws its 3x3 convolutions':
truncated normal of variance 2 / fan_in. The running statistics move by 0.1, torch's
default: at slim's 0.0003 they are still 5 % of where they started after 10,000 steps.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from flaxcnn.layers import BatchNorm, Conv, avg_pool, global_avg_pool, max_pool, relu
from flaxcnn.layers.head import classify
from flaxcnn.layers.input import check_images
from flaxcnn.registry import Info, register

Widths = tuple[int, tuple[int, int], tuple[int, int, int], str, int]

BLOCKS: dict[str, Widths] = {
    # 1x1, (1x1, 3x3), (1x1, 3x3, 3x3), pooling, 1x1 behind it; 0: of stride 2, without
    "3b": (64, (64, 64), (64, 96, 96), "avg", 32),
    "3c": (64, (64, 96), (64, 96, 96), "avg", 64),
    "4a": (0, (128, 160), (64, 96, 96), "max", 0),
    "4b": (224, (64, 96), (96, 128, 128), "avg", 128),
    "4c": (192, (96, 128), (96, 128, 128), "avg", 128),
    "4d": (160, (128, 160), (128, 160, 160), "avg", 96),
    "4e": (96, (128, 192), (160, 192, 192), "avg", 96),
    "5a": (0, (128, 192), (192, 256, 256), "max", 0),
    "5b": (352, (192, 320), (160, 224, 224), "avg", 128),
    "5c": (352, (192, 320), (192, 224, 224), "max", 128),
}


class BasicConv2d(nn.Module):
    """Convolution without bias, padded to keep the size; BatchNorm, ReLU.

    Attributes:
      features: channels of the output.
      kernel: size of the kernel.
      stride: of the convolution.
      dtype: of the computation.
    """

    features: int
    kernel: int = 1
    stride: int = 1
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = Conv(self.features, (self.kernel, self.kernel), self.stride,
                 self.kernel // 2, use_bias=False, dtype=self.dtype,
                 kernel_init=nn.initializers.he_normal(), name="conv")(x)  # fmt: skip
        x = BatchNorm(epsilon=1e-3, dtype=self.dtype, name="bn")(x, train=train)
        return relu(x)


class Mixed(nn.Module):
    """A block: [N, H, W, C] to [N, H, W, sum of the branches' widths].

    At stride 2 [N, H/2, W/2, ...], and the pooling hands on its C channels.

    Attributes:
      widths: a row of `BLOCKS`.
      dtype: of the computation.
    """

    widths: Widths
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        conv = functools.partial(BasicConv2d, dtype=self.dtype)
        ones, threes, doubles, pooling, projection = self.widths
        stride = 1 if ones else 2
        branches = []
        if ones:
            branches.append(conv(ones, name="branch1")(x, train=train))
        for name, (reduced, *features) in (("branch2", threes), ("branch3", doubles)):
            y = conv(reduced, name=f"{name}.0")(x, train=train)
            for i, width in enumerate(features, start=1):
                s = stride if i == len(features) else 1
                y = conv(width, 3, s, name=f"{name}.{i}")(y, train=train)
            branches.append(y)
        if pooling == "max":
            y = max_pool(x, 3, stride, padding=1)
        else:
            y = avg_pool(x, 3, stride, padding=1, count_include_pad=False)
        if projection:
            y = conv(projection, name="branch4.1")(y, train=train)
        return jnp.concatenate([*branches, y], axis=-1)


@register("bn_inception", info=Info(
    params=11_194_984, macs=2_018_851_840, paper="1502.03167",
    preprocess="inception"))  # fmt: skip
class BNInception(nn.Module):
    """The network of figure 5.

    Endpoints: "Conv2d_1a_7x7" [N, H/2, W/2, 64]; "Conv2d_2c_3x3" of stride 4, 192
    channels; "Mixed_3b", "Mixed_3c" of stride 8, 256 and 320; "Mixed_4a" to "Mixed_4e"
    of stride 16, 576 each; "Mixed_5a" to "Mixed_5c" of stride 32, 1024 each.

    Attributes:
      num_classes: number of classes; 0 returns pooled features, [N, 1024].
      dropout: rate of dropout in front of the classifier, as slim; 0 in the paper.
      dtype: of the computation; parameters stay float32, logits at least that.
    """

    num_classes: int = 1000
    dropout: float = 0.2
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool, endpoints: bool = False
    ) -> jax.Array | tuple[jax.Array, dict[str, jax.Array]]:
        """Logits [N, num_classes] of images [N, H, W, C] of any size."""
        check_images("BN-Inception", x)
        ends = {}

        def conv(
            x: jax.Array, features: int, kernel: int, stride: int, name: str
        ) -> jax.Array:
            layer = BasicConv2d(features, kernel, stride, self.dtype, name=name)
            return layer(x, train=train)

        x = ends["Conv2d_1a_7x7"] = conv(x, 64, 7, 2, "Conv2d_1a_7x7")
        x = max_pool(x, 3, 2, padding=1)  # [N, 56, 56, 64]
        x = conv(x, 64, 1, 1, "Conv2d_2b_1x1")
        x = ends["Conv2d_2c_3x3"] = conv(x, 192, 3, 1, "Conv2d_2c_3x3")
        x = max_pool(x, 3, 2, padding=1)  # [N, 28, 28, 192]
        for block, widths in BLOCKS.items():
            name = f"Mixed_{block}"
            x = ends[name] = Mixed(widths, self.dtype, name=name)(x, train=train)
        # [N, 28, 28, 320] at 3c, [N, 14, 14, 576] at 4a to 4e, [N, 7, 7, 1024]
        x = ends["pre_logits"] = global_avg_pool(x)
        init = nn.initializers.he_normal()
        x = classify(x, self.num_classes, "fc", train=train,
                     dropout=self.dropout, kernel_init=init)  # fmt: skip
        return (x, ends) if endpoints else x
