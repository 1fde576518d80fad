"""Very Deep Convolutional Networks for Large-Scale Image Recognition.

Simonyan and Zisserman, 2014 (arXiv:1409.1556).

Depth from stacks of 3x3 convolutions, halved five times by max pooling, then three
fully connected layers. `fully_conv=True` evaluates densely, as the paper does (section
3.2): the fully connected layers slide over a larger image and return a map of logits,
which the paper averages. The variables are the same.

A-LRN and C are the paper's alone, the other columns also torchvision's: ours has its
names, its BatchNorm variants and its initialization (He et al. 2015 for convolutions,
N(0, 0.01) for the rest; the paper starts its deep networks from a trained column A).
Like torchvision it averages the last map to 7x7, so that images of any size have one
vector of logits. `vgg16_cifar` is the lecture's notebook: column D at 32 pixels with a
map of 1x1, no dropout, and everything drawn by He et al.'s uniform rule.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from flaxcnn.errors import unknown
from flaxcnn.layers import (
    BatchNorm,
    Conv,
    Dropout,
    MapDense,
    adaptive_avg_pool,
    local_response_norm,
    max_pool,
    relu,
)
from flaxcnn.layers.head import classify
from flaxcnn.layers.init import he_normal_fan_out
from flaxcnn.layers.input import check_images
from flaxcnn.registry import Info, register

# Table 1, block by block: 3x3 and 1x1 convolutions, L for local response normalization.
COLUMNS = {
    "A": ("3", "3", "33", "33", "33"),
    "A-LRN": ("3L", "3", "33", "33", "33"),
    "B": ("33", "33", "33", "33", "33"),
    "C": ("33", "33", "331", "331", "331"),
    "D": ("33", "33", "333", "333", "333"),
    "E": ("33", "33", "3333", "3333", "3333"),
}
WIDTHS = (64, 128, 256, 512, 512)

he_uniform = nn.initializers.he_uniform()


@register("vgg11", column="A", info=Info(
    params=132_863_336, macs=7_609_090_048, paper="1409.1556"))  # fmt: skip
@register("vgg11_lrn", column="A-LRN", info=Info(
    params=132_863_336, macs=7_609_090_048, paper="1409.1556"))  # fmt: skip
@register("vgg13", column="B", info=Info(
    params=133_047_848, macs=11_308_466_176, paper="1409.1556"))  # fmt: skip
@register("vgg16_c", column="C", info=Info(
    params=133_638_952, macs=11_770_888_192, paper="1409.1556"))  # fmt: skip
@register("vgg16", column="D", info=Info(
    params=138_357_544, macs=15_470_264_320, paper="1409.1556"))  # fmt: skip
@register("vgg19", column="E", info=Info(
    params=143_667_240, macs=19_632_062_464, paper="1409.1556"))  # fmt: skip
@register("vgg11_bn", column="A", batch_norm=True, info=Info(
    params=132_868_840, macs=7_609_090_048, paper="1409.1556"))  # fmt: skip
@register("vgg13_bn", column="B", batch_norm=True, info=Info(
    params=133_053_736, macs=11_308_466_176, paper="1409.1556"))  # fmt: skip
@register("vgg16_bn", column="D", batch_norm=True, info=Info(
    params=138_365_992, macs=15_470_264_320, paper="1409.1556"))  # fmt: skip
@register("vgg19_bn", column="E", batch_norm=True, info=Info(
    params=143_678_248, macs=19_632_062_464, paper="1409.1556"))  # fmt: skip
@register("vgg16_cifar", num_classes=10, column="D", map_size=1, dropout=0.0,
    lecture_init=True, info=Info(params=33_638_218, macs=332_111_872,
    paper="STAT 453, L13", input_size=(32, 32, 3), preprocess="unit"))  # fmt: skip
class VGG(nn.Module):
    """The columns of table 1.

    Endpoints: "block1" to "block5", after each pooling, of strides 2, 4, 8, 16, 32 and
    64, 128, 256, 512, 512 channels; "pre_logits" [N, 4096].

    Attributes:
      num_classes: number of classes; 0 returns the pre-logits.
      column: of Table 1: "A", "A-LRN", "B", "C", "D" or "E".
      batch_norm: normalise between each convolution and its ReLU.
      map_size: height and width of the map that the fully connected layers see.
      fully_conv: slide them over the map instead of averaging it to that size: logits
        are [N, H/32 - map_size + 1, W/32 - map_size + 1, num_classes], the pre-logits
        a map as well.
      dropout: rate of dropout after the first two fully connected layers.
      lecture_init: draw every weight from U(+-sqrt(6 / fan_in)).
      dtype: of the computation; parameters stay float32, logits at least that.
    """

    num_classes: int = 1000
    column: str = "D"
    batch_norm: bool = False
    map_size: int = 7
    fully_conv: bool = False
    dropout: float = 0.5
    lecture_init: bool = False
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool, endpoints: bool = False
    ) -> jax.Array | tuple[jax.Array, dict[str, jax.Array]]:
        """Logits [N, num_classes] of images [N, H, W, C], H and W at least 32.

        With `fully_conv` a map of them, and H and W at least 32 map_size.
        """
        check_images("VGG", x, min_size=32 * (self.map_size if self.fully_conv else 1))
        if self.column not in COLUMNS:
            raise unknown("VGG column", self.column, COLUMNS)
        conv_init = he_uniform if self.lecture_init else he_normal_fan_out
        init = he_uniform if self.lecture_init else nn.initializers.normal(0.01)
        ends = {}

        index = 0  # in torchvision's list of layers; without an entry for LRN
        for block, width in enumerate(WIDTHS):
            for layer in COLUMNS[self.column][block]:
                if layer == "L":
                    x = local_response_norm(x)
                    continue
                kernel = int(layer)
                x = Conv(width, (kernel, kernel), 1, kernel // 2, kernel_init=conv_init,
                         dtype=self.dtype, name=f"features.{index}")(x)  # fmt: skip
                if self.batch_norm:
                    name = f"features.{index + 1}"
                    x = BatchNorm(dtype=self.dtype, name=name)(x, train=train)
                x = relu(x)
                index += 3 if self.batch_norm else 2
            x = max_pool(x, 2)
            index += 1
            ends[f"block{block + 1}"] = x  # [N, 112, 112, 64], ..., [N, 7, 7, 512]

        size = (self.map_size, self.map_size)
        if not self.fully_conv:
            x = adaptive_avg_pool(x, size)
        x = MapDense(
            4096, size, kernel_init=init, dtype=self.dtype, name="classifier.0"
        )(x)
        if not self.fully_conv:
            x = x[:, 0, 0]
        x = Dropout(self.dropout)(relu(x), train=train)  # [N, 4096]
        x = nn.Dense(4096, kernel_init=init, dtype=self.dtype, name="classifier.3")(x)
        x = ends["pre_logits"] = relu(x)
        x = classify(x, self.num_classes, "classifier.6", train=train,
                     dropout=self.dropout, kernel_init=init)  # fmt: skip
        return (x, ends) if endpoints else x
