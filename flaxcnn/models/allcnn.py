"""Striving for Simplicity: The All Convolutional Net.

Springenberg, Dosovitskiy, Brox, Riedmiller, 2014 (arXiv:1412.6806), Tables 1-3.

Three base networks (A, B, C) and, for each, what replaces their max-pooling: a
larger stride of the convolution before it ("strided"), an extra convolution in
front of it ("convpool", the control for the added parameters), or a convolution
of stride 2 in its place ("all"). No fully connected layer: the class maps are
averaged.

Where the paper is silent: 5x5 convolutions and 3x3 poolings are padded so that
32 pixels become 16, then 8; the 3x3 convolution of the top is not (8 to 6, the
"6x6" of Table 1).

Weights are drawn from N(0, 0.05), as those of Network In Network, whose recipe this one
resembles. With those of He et al. (2015) a layer keeps the scale of its input, but a
maximum of nine ReLUs about doubles it: behind two poolings the logits start far apart,
and the first gradients are so large that after six steps of the recipe almost no unit
of CNN-A's second convolution is positive, ever again. With those of Glorot and Bengio
(2010) CNN-A learns, but All-CNN-C, twice as deep, stays at ln(10) for longer.

The biases of the class maps start at 5, which softmax does not see: behind its ReLU a
map that starts near 0 is soon pushed below it, for good, by all the classes that it is
not. (With He's weights, of three seeds on the digits two lost a class when the biases
started at 1; of five, none at 5: results/allcnn_bias.csv.)

`allcnn_c_bn` is no network of the paper, but one for short recipes: with BatchNorm
(Ioffe and Szegedy, 2015, arXiv:1502.03167) before each ReLU there is no plateau.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from flaxcnn.errors import unknown
from flaxcnn.layers import (
    BatchNorm,
    Conv,
    Dropout,
    SpatialDropout,
    global_avg_pool,
    max_pool,
    relu,
)
from flaxcnn.layers.init import torch_uniform
from flaxcnn.layers.input import check_images
from flaxcnn.layers.precision import wide
from flaxcnn.registry import Info, register

KERNELS = {"a": (5,), "b": (5, 1), "c": (3, 3)}
REDUCTIONS = ("pool", "strided", "convpool", "all")


@register("cnn_a", base="a", reduction="pool", info=Info(params=839_242,
    macs=138_677_760, input_size=(32, 32, 3), preprocess="gcn_zca",
    paper="1412.6806"))  # fmt: skip
@register("cnn_b", base="b", reduction="pool", info=Info(params=885_610,
    macs=157_552_128, input_size=(32, 32, 3), preprocess="gcn_zca",
    paper="1412.6806"))  # fmt: skip
@register("cnn_c", base="c", reduction="pool", info=Info(params=954_730,
    macs=228_331_008, input_size=(32, 32, 3), preprocess="gcn_zca",
    paper="1412.6806"))  # fmt: skip
@register("strided_cnn_a", base="a", reduction="strided", info=Info(params=839_242,
    macs=44_674_560, input_size=(32, 32, 3), preprocess="gcn_zca",
    paper="1412.6806"))  # fmt: skip
@register("strided_cnn_b", base="b", reduction="strided", info=Info(params=885_610,
    macs=143_396_352, input_size=(32, 32, 3), preprocess="gcn_zca",
    paper="1412.6806"))  # fmt: skip
@register("strided_cnn_c", base="c", reduction="strided", info=Info(params=954_730,
    macs=100_929_024, input_size=(32, 32, 3), preprocess="gcn_zca",
    paper="1412.6806"))  # fmt: skip
@register("convpool_cnn_a", base="a", reduction="convpool", info=Info(params=1_254_250,
    macs=308_547_072, input_size=(32, 32, 3), preprocess="gcn_zca",
    paper="1412.6806"))  # fmt: skip
@register("convpool_cnn_b", base="b", reduction="convpool", info=Info(params=1_300_618,
    macs=327_421_440, input_size=(32, 32, 3), preprocess="gcn_zca",
    paper="1412.6806"))  # fmt: skip
@register("convpool_cnn_c", base="c", reduction="convpool", info=Info(params=1_369_738,
    macs=398_200_320, input_size=(32, 32, 3), preprocess="gcn_zca",
    paper="1412.6806"))  # fmt: skip
@register("allcnn_a", base="a", reduction="all", info=Info(params=1_254_250,
    macs=181_145_088, input_size=(32, 32, 3), preprocess="gcn_zca",
    paper="1412.6806"))  # fmt: skip
@register("allcnn_b", base="b", reduction="all", info=Info(params=1_300_618,
    macs=200_019_456, input_size=(32, 32, 3), preprocess="gcn_zca",
    paper="1412.6806"))  # fmt: skip
@register("allcnn_c", base="c", reduction="all", info=Info(params=1_369_738,
    macs=270_798_336, input_size=(32, 32, 3), preprocess="gcn_zca",
    paper="1412.6806"))  # fmt: skip
@register("allcnn_c_bn", base="c", reduction="all", batch_norm=True, input_dropout=0.0,
    dropout=0.0, info=Info(params=1_370_986, macs=270_798_336, input_size=(32, 32, 3),
    preprocess="standardize", paper="1412.6806"))  # fmt: skip
class AllCNN(nn.Module):
    """The networks of Table 3, and one of them with BatchNorm.

    Endpoints: "block1" and "block2", after each reduction, of strides 2 and 4 and 96
    and 192 channels.

    Attributes:
      num_classes: number of classes; 0 returns pooled features, [N, 192].
      base: "a", "b" or "c", a column of Table 1.
      reduction: "pool", "strided", "convpool" or "all", a column of Table 2.
      batch_norm: normalise between each convolution and its ReLU, in place of a bias.
        The class maps are not normalised, and have no ReLU.
      input_dropout: rate of dropout on the image.
      dropout: rate of dropout after each pooling or what replaces it.
      spatial: that dropout is of whole feature maps (arXiv:1411.4280), not of elements.
      dtype: of the computation; parameters stay float32, logits at least that.
    """

    num_classes: int = 10
    base: str = "c"
    reduction: str = "all"
    batch_norm: bool = False
    input_dropout: float = 0.2
    dropout: float = 0.5
    spatial: bool = False
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool, endpoints: bool = False
    ) -> jax.Array | tuple[jax.Array, dict[str, jax.Array]]:
        """Logits [N, num_classes] of images [N, H, W, C], H and W at least 9."""
        check_images("All-CNN", x, min_size=9)
        if self.base not in KERNELS:
            raise unknown("All-CNN base", self.base, KERNELS)
        if self.reduction not in REDUCTIONS:
            raise unknown("All-CNN reduction", self.reduction, REDUCTIONS)
        drop = SpatialDropout if self.spatial else Dropout
        count = 0

        def conv(x: jax.Array, features: int, kernel: int, stride: int = 1, *,
                 padding: int | None = None, **options: Any) -> jax.Array:  # fmt: skip
            nonlocal count
            count += 1
            padding = kernel // 2 if padding is None else padding
            return Conv(features, (kernel, kernel), stride, padding, dtype=self.dtype,
                        kernel_init=nn.initializers.normal(0.05), **options,
                        name=f"conv{count}")(x)  # fmt: skip

        def layer(x: jax.Array, *shape: int, **options: Any) -> jax.Array:
            x = conv(x, *shape, use_bias=not self.batch_norm, **options)
            if self.batch_norm:
                x = BatchNorm(dtype=self.dtype, name=f"norm{count}")(x, train=train)
            return relu(x)

        ends = {}
        x = Dropout(self.input_dropout)(x, train=train)
        for block, width in enumerate((96, 192), start=1):
            *kernels, last = KERNELS[self.base]
            for kernel in kernels:
                x = layer(x, width, kernel)
            x = layer(x, width, last, stride=2 if self.reduction == "strided" else 1)
            if self.reduction == "convpool":
                x = layer(x, width, 3)
            if self.reduction == "all":
                x = layer(x, width, 3, stride=2)
            if self.reduction in ("pool", "convpool"):
                x = max_pool(x, 3, 2, padding=1)
            ends[f"block{block}"] = x  # [N, 16, 16, 96], then [N, 8, 8, 192]
            x = drop(self.dropout)(x, train=train)

        x = layer(x, 192, 3, padding=0)  # [N, 6, 6, 192]
        x = layer(x, 192, 1)
        ends["pre_logits"] = global_avg_pool(x)
        if self.num_classes and self.batch_norm:
            x = conv(x, self.num_classes, 1)
        elif self.num_classes:  # ReLU here too, as in the paper
            x = layer(x, self.num_classes, 1, bias_init=nn.initializers.constant(5.0))
        x = global_avg_pool(wide(x))
        return (x, ends) if endpoints else x


@register("allconv_mnist", info=Info(params=6_006,
    macs=257_472, input_size=(28, 28, 1), preprocess="unit",
    paper="STAT 453, L13"))  # fmt: skip
class AllConvMNIST(nn.Module):
    """The lecture's small all-convolutional net for MNIST, a notebook of its own.

    3x3 convolutions, every second one of stride 2, ReLU after each (the last too),
    averaged class maps; no dropout. Weights and biases as torch draws them.

    Endpoints: "block1" to "block3", of strides 2, 4, 8 and 4, 8, 16 channels.

    Attributes:
      num_classes: number of classes; 0 returns pooled features, [N, 16].
      dtype: of the computation; parameters stay float32, logits at least that.
    """

    num_classes: int = 10
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool, endpoints: bool = False
    ) -> jax.Array | tuple[jax.Array, dict[str, jax.Array]]:
        """Logits [N, num_classes] of images [N, H, W, C]."""
        check_images("allconv_mnist", x)

        def conv(x: jax.Array, features: int, stride: int, name: str) -> jax.Array:
            init = torch_uniform(fan_in=9 * x.shape[-1])
            layer = Conv(features, (3, 3), stride, 1, kernel_init=init, bias_init=init,
                         dtype=self.dtype, name=name)  # fmt: skip
            return relu(layer(x))

        ends = {}
        for i, width in enumerate((4, 8, 16), start=1):
            x = conv(x, width, 1, f"conv{2 * i - 1}")
            x = conv(x, width, 2, f"conv{2 * i}")
            ends[f"block{i}"] = x  # [N, 14, 14, 4], [N, 7, 7, 8], [N, 4, 4, 16]
        ends["pre_logits"] = global_avg_pool(x)
        if self.num_classes:
            x = conv(x, self.num_classes, 1, "conv7")
        x = global_avg_pool(wide(x))
        return (x, ends) if endpoints else x
