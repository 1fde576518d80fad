"""The lecture's two small residual networks for MNIST (STAT 453, L13, resnet-blocks).

Each is two blocks and one fully connected layer. Convolutions have biases and BatchNorm
after them; weights are drawn as torch draws them. `resblocks_identity` adds a block's
input as it is; `resblocks_resized` halves the map, so that a strided 1x1 convolution
has to resize the shortcut (the notebook's class `ResidualBlock`).
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from flaxcnn.layers import BatchNorm, Conv, MapDense, relu
from flaxcnn.layers.init import torch_uniform
from flaxcnn.layers.input import check_images
from flaxcnn.layers.precision import wide
from flaxcnn.registry import Info, register


class ResidualBlock(nn.Module):
    """relu(F(x) + shortcut(x)) of [N, H, W, C].

    Attributes:
      widths: channels of the two convolutions. With None for the second the block
        keeps the shape of x and adds it as it is; else it halves H and W.
      kernels: sizes of their kernels.
      dtype: of the computation.
    """

    widths: tuple[int, int | None]
    kernels: tuple[int, int]
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        def conv_bn(
            x: jax.Array, features: int, kernel: int, stride: int, number: str
        ) -> jax.Array:
            init = torch_uniform(kernel**2 * x.shape[-1])
            conv = Conv(features, (kernel, kernel), stride, kernel // 2,
                        kernel_init=init, bias_init=init, dtype=self.dtype,
                        name=f"conv{number}")  # fmt: skip
            bn = BatchNorm(dtype=self.dtype, name=f"bn{number}")
            return bn(conv(x), train=train)

        inner, outer = self.widths
        stride = 1 if outer is None else 2
        y = relu(conv_bn(x, inner, self.kernels[0], stride, "1"))
        y = conv_bn(y, outer or x.shape[-1], self.kernels[1], 1, "2")
        if outer is not None:
            x = conv_bn(x, outer, 1, stride, "_shortcut")
        return relu(y + x.astype(y.dtype))


@register("resblocks_identity", widths=((4, None), (4, None)), kernels=(1, 3),
    info=Info(params=7_960, macs=70_560, paper="STAT 453, L13",
    input_size=(28, 28, 1), preprocess="unit"))  # fmt: skip
@register("resblocks_resized", widths=((4, 8), (16, 32)), kernels=(3, 1),
    info=Info(params=17_986, macs=124_656, paper="STAT 453, L13",
    input_size=(28, 28, 1), preprocess="unit"))  # fmt: skip
class ResBlocks(nn.Module):
    """Two residual blocks.

    Endpoints: "block1" and "block2", of strides 1 and 1 and the input's channels, or
    (resized) of strides 2 and 4 and 8 and 32 channels. The fully connected layer fixes
    the size of the images.

    Attributes:
      num_classes: number of classes; 0 returns the flattened map, [N, 784] or
        [N, 1568] for images of 28x28.
      widths: of each block, as `ResidualBlock` has them.
      kernels: sizes of a block's two kernels.
      dtype: of the computation; parameters stay float32, logits at least that.
    """

    num_classes: int = 10
    widths: tuple[tuple[int, int | None], ...] = ((4, None), (4, None))
    kernels: tuple[int, int] = (1, 3)
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool, endpoints: bool = False
    ) -> jax.Array | tuple[jax.Array, dict[str, jax.Array]]:
        """Logits [N, num_classes] of images [N, H, W, C]."""
        check_images("resblocks", x)
        ends = {}
        for i, widths in enumerate(self.widths, start=1):
            block = ResidualBlock(widths, self.kernels, self.dtype, name=f"block{i}")
            x = ends[f"block{i}"] = block(x, train=train)
        x = wide(x)
        ends["pre_logits"] = x.reshape(len(x), -1)
        if not self.num_classes:
            x = ends["pre_logits"]
        else:
            init = torch_uniform(ends["pre_logits"].shape[-1])
            _, height, width, _ = x.shape
            x = MapDense(self.num_classes, (height, width), kernel_init=init,
                         bias_init=init, name="fc")(x)[:, 0, 0]  # fmt: skip
        return (x, ends) if endpoints else x
