"""Network In Network.

Lin, Chen, Yan, 2013 (arXiv:1312.4400).

An mlpconv slides a small multilayer perceptron over the image: a convolution and
two 1x1 convolutions ("cccp" in the author's files). No fully connected layer: the
last 1x1 convolution makes one map a class, and the maps are averaged.

`nin` follows the author's definition file for CIFAR-10 (both poolings are max, and
cover the border as cuda-convnet does: ceil mode, no padding; weights N(0, 0.05)).
`nin_lecture` is the lecture's notebook: the second pooling is an average, both are
padded by 1, weights as torch draws them.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from flaxcnn.layers import Conv, Dropout, avg_pool, global_avg_pool, max_pool, relu
from flaxcnn.layers.init import torch_uniform
from flaxcnn.layers.input import check_images
from flaxcnn.layers.precision import wide
from flaxcnn.registry import Info, register


class MlpConv(nn.Module):
    """A convolution and 1x1 convolutions, ReLU after each.

    Attributes:
      features: channels of the convolution and of each 1x1 convolution.
      kernel: size of the first convolution's kernel, padded to keep the size.
      torch_init: draw weights and biases as torch does, instead of N(0, 0.05).
      dtype: of the computation.
    """

    features: tuple[int, ...]
    kernel: int
    torch_init: bool
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, H, W, C] to [N, H, W, features[-1]]."""
        for i, features in enumerate(self.features):
            kernel = self.kernel if i == 0 else 1
            conv = functools.partial(
                Conv, features, (kernel, kernel), padding=kernel // 2, dtype=self.dtype
            )
            if self.torch_init:
                init = torch_uniform(kernel**2 * x.shape[-1])
                layer = conv(kernel_init=init, bias_init=init, name=f"conv{i}")
            else:
                normal = nn.initializers.normal(0.05)
                layer = conv(kernel_init=normal, name=f"conv{i}")
            x = relu(layer(x))
        return x


@register("nin", info=Info(params=966_986, macs=222_486_528,
    input_size=(32, 32, 3), preprocess="gcn_zca", paper="1312.4400"))  # fmt: skip
@register("nin_lecture", lecture=True, info=Info(params=966_986, macs=222_486_528,
    input_size=(32, 32, 3), preprocess="unit", paper="1312.4400"))  # fmt: skip
class NiN(nn.Module):
    """The network for CIFAR.

    Endpoints: "block1" to "block3", of strides 2, 4, 4 and 96, 192, 192 channels.

    Attributes:
      num_classes: number of classes; 0 returns pooled features, [N, 192].
      lecture: the notebook's poolings and initialization, not the author's.
      dropout: rate of dropout after each pooling.
      dtype: of the computation; parameters stay float32, logits at least that.
    """

    num_classes: int = 10
    lecture: bool = False
    dropout: float = 0.5
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool, endpoints: bool = False
    ) -> jax.Array | tuple[jax.Array, dict[str, jax.Array]]:
        """Logits [N, num_classes] of images [N, H, W, C], H and W at least 5."""
        check_images("NiN", x, min_size=5)
        mlpconv = functools.partial(MlpConv, torch_init=self.lecture, dtype=self.dtype)
        border = {"padding": 1} if self.lecture else {"ceil_mode": True}
        pool2 = avg_pool if self.lecture else max_pool
        ends = {}

        x = mlpconv((192, 160, 96), 5, name="mlpconv1")(x)
        x = ends["block1"] = max_pool(x, 3, 2, **border)  # [N, 16, 16, 96]
        x = Dropout(self.dropout)(x, train=train)
        x = mlpconv((192, 192, 192), 5, name="mlpconv2")(x)
        x = ends["block2"] = pool2(x, 3, 2, **border)  # [N, 8, 8, 192]
        x = Dropout(self.dropout)(x, train=train)
        x = mlpconv((192, 192), 3, name="mlpconv3")(x)
        ends["block3"] = x
        ends["pre_logits"] = global_avg_pool(x)
        if self.num_classes:
            x = mlpconv((self.num_classes,), 1, name="classifier")(x)
        x = global_avg_pool(wide(x))
        return (x, ends) if endpoints else x
