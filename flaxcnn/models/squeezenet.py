"""SqueezeNet: AlexNet-level accuracy with 50x fewer parameters and <0.5MB model size.

Iandola, Han, Moskewicz, Ashraf, Dally, Keutzer, 2016 (arXiv:1602.07360).

A fire module squeezes its input to few channels by a 1x1 convolution before it expands
them, half by 1x1 and half by 3x3 convolutions. No fully connected layer: as in NiN, a
1x1 convolution with ReLU makes one map a class, and the maps are averaged.

1.0 is the paper's Table 1; 1.1 is the authors' later release, with a smaller stem and
earlier poolings. Both are as in torchvision: poolings cover the border (ceil mode), no
padding in the stem, no bypass; He et al.'s uniform initialization, N(0, 0.01) for the
class maps. But their biases start at 5, not 0, as in All-CNN: softmax does not see it,
and behind its ReLU a map that starts near 0 dies easily.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from flaxcnn.layers import Conv, Dropout, global_avg_pool, max_pool, relu
from flaxcnn.layers.input import check_images
from flaxcnn.layers.precision import wide
from flaxcnn.registry import Info, register

he_uniform = nn.initializers.he_uniform()


class Fire(nn.Module):
    """Squeeze, then expand (figure 1): [N, H, W, C] to [N, H, W, 8 squeeze].

    Attributes:
      squeeze: channels between; each half of the output has four times as many.
      dtype: of the computation.
    """

    squeeze: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def conv(x: jax.Array, features: int, kernel: int, name: str) -> jax.Array:
            layer = Conv(features, (kernel, kernel), 1, kernel // 2, dtype=self.dtype,
                         kernel_init=he_uniform, name=name)  # fmt: skip
            return relu(layer(x))

        x = conv(x, self.squeeze, 1, "squeeze")
        halves = [conv(x, 4 * self.squeeze, k, f"expand{k}x{k}") for k in (1, 3)]
        return jnp.concatenate(halves, axis=-1)


@register("squeezenet1_0", info=Info(
    params=1_248_424, macs=818_924_576, paper="1602.07360"))  # fmt: skip
@register("squeezenet1_1", stem=(64, 3), blocks=((16, 16), (32, 32), (48, 48, 64, 64)),
    info=Info(params=1_235_496, macs=349_151_936, paper="1602.07360"))  # fmt: skip
class SqueezeNet(nn.Module):
    """Table 1.

    Endpoints: "stem", of stride 2; "block1", "block2", "block3", the fire modules after
    each pooling, of strides 4, 8, 16. Channels are 96, 256, 512, 512 in version 1.0 and
    64, 128, 256, 512 in 1.1.

    Attributes:
      num_classes: number of classes; 0 returns pooled features, [N, 512].
      stem: channels and kernel size of the first convolution.
      blocks: the squeezed channels of the fire modules after each pooling.
      dropout: rate of dropout before the class maps.
      dtype: of the computation; parameters stay float32, logits at least that.
    """

    num_classes: int = 1000
    stem: tuple[int, int] = (96, 7)
    blocks: tuple[tuple[int, ...], ...] = ((16, 16, 32), (32, 48, 48, 64), (64,))
    dropout: float = 0.5
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool, endpoints: bool = False
    ) -> jax.Array | tuple[jax.Array, dict[str, jax.Array]]:
        """Logits [N, num_classes] of images [N, H, W, C], at least 21 or 17 pixels."""
        width, kernel = self.stem
        # Three poolings follow: the stem has to give them 8 pixels.
        check_images("SqueezeNet", x, min_size=kernel + 14)
        ends = {}

        x = Conv(width, (kernel, kernel), 2, 0, kernel_init=he_uniform,
                 dtype=self.dtype, name="features.0")(x)  # fmt: skip
        x = ends["stem"] = relu(x)  # [N, 109, 109, 96]
        index = 2  # in torchvision's list of layers
        for block, squeezes in enumerate(self.blocks, start=1):
            x = max_pool(x, 3, 2, ceil_mode=True)
            for squeeze in squeezes:
                index += 1
                x = Fire(squeeze, self.dtype, name=f"features.{index}")(x)
            index += 1
            ends[f"block{block}"] = x  # [N, 54, 54, 256], ..., [N, 13, 13, 512]
        ends["pre_logits"] = global_avg_pool(x)
        if self.num_classes:
            x = Dropout(self.dropout)(x, train=train)
            x = Conv(self.num_classes, (1, 1), 1, 0, dtype=self.dtype,
                     kernel_init=nn.initializers.normal(0.01),
                     bias_init=nn.initializers.constant(5.0),
                     name="classifier.1")(x)  # fmt: skip
            x = relu(x)
        x = global_avg_pool(wide(x))
        return (x, ends) if endpoints else x
