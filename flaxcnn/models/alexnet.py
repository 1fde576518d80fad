"""One weird trick for parallelizing convolutional neural networks.

Krizhevsky, 2014 (arXiv:1404.5997).

The single-tower AlexNet: the network of ImageNet 2012 (Krizhevsky, Sutskever, Hinton)
without its split over two GPUs. Ours is torchvision's: without the response
normalization of the author's definition file, with dropout before instead of after the
first two fully connected layers, padding on the first convolution, weights and biases
as torch draws them, and the last map averaged to 6x6, so that images of any size fit.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from flaxcnn.layers import Conv, Dropout, MapDense, adaptive_avg_pool, max_pool, relu
from flaxcnn.layers.head import classify
from flaxcnn.layers.init import torch_uniform
from flaxcnn.layers.input import check_images
from flaxcnn.registry import Info, register


@register("alexnet", info=Info(params=61_100_840, macs=714_188_480, paper="1404.5997"))
class AlexNet(nn.Module):
    """Five convolutions and three fully connected layers.

    Endpoints: "block1" to "block3", after each pooling, of strides 8, 16, 32 and 64,
    192, 256 channels; "pre_logits", what the last layer sees, [N, 4096].

    Attributes:
      num_classes: number of classes; 0 returns the pre-logits.
      dropout: rate of dropout before the first two fully connected layers.
      dtype: of the computation; parameters stay float32, logits at least that.
    """

    num_classes: int = 1000
    dropout: float = 0.5
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool, endpoints: bool = False
    ) -> jax.Array | tuple[jax.Array, dict[str, jax.Array]]:
        """Logits [N, num_classes] of images [N, H, W, C], H and W at least 63."""
        check_images("AlexNet", x, min_size=63)

        def conv(x: jax.Array, features: int, kernel: int, stride: int, padding: int,
                 name: str) -> jax.Array:  # fmt: skip
            init = torch_uniform(kernel**2 * x.shape[-1])
            layer = Conv(features, (kernel, kernel), stride, padding, kernel_init=init,
                         bias_init=init, dtype=self.dtype, name=name)  # fmt: skip
            return relu(layer(x))

        ends = {}
        x = conv(x, 64, 11, 4, 2, "features.0")  # [N, 55, 55, 64]
        x = ends["block1"] = max_pool(x, 3, 2)  # [N, 27, 27, 64]
        x = conv(x, 192, 5, 1, 2, "features.3")
        x = ends["block2"] = max_pool(x, 3, 2)  # [N, 13, 13, 192]
        x = conv(x, 384, 3, 1, 1, "features.6")
        x = conv(x, 256, 3, 1, 1, "features.8")
        x = conv(x, 256, 3, 1, 1, "features.10")
        x = ends["block3"] = max_pool(x, 3, 2)  # [N, 6, 6, 256]

        x = Dropout(self.dropout)(adaptive_avg_pool(x, (6, 6)), train=train)
        init = torch_uniform(6 * 6 * 256)
        x = MapDense(4096, (6, 6), kernel_init=init, bias_init=init, dtype=self.dtype,
                     name="classifier.1")(x)  # fmt: skip
        x = Dropout(self.dropout)(relu(x[:, 0, 0]), train=train)
        init = torch_uniform(4096)
        x = nn.Dense(4096, kernel_init=init, bias_init=init, dtype=self.dtype,
                     name="classifier.4")(x)  # fmt: skip
        x = ends["pre_logits"] = relu(x)
        x = classify(x, self.num_classes, "classifier.6", train=train)
        return (x, ends) if endpoints else x
