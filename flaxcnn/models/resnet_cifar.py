"""The residual networks for CIFAR-10 of the ResNet paper.

He, Zhang, Ren, Sun, 2015 (arXiv:1512.03385), section 4.2.

6n + 2 layers: a 3x3 convolution, n basic blocks each of 16, 32 and 64 channels, global
average, one fully connected layer. Shortcuts are parameter-free (option A) by default.
With option A the keys are those of akamaster/pytorch_resnet_cifar10, whose weights are
in use, without their `module.`.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from flaxcnn.layers import Conv, global_avg_pool
from flaxcnn.layers.head import classify
from flaxcnn.layers.init import he_normal_fan_out
from flaxcnn.layers.input import check_images
from flaxcnn.models.resnet import BasicBlock, norm_act, stage
from flaxcnn.registry import Info, register


@register("resnet20_cifar", n=3, info=Info(params=269_722, macs=40_551_040,
    paper="1512.03385", input_size=(32, 32, 3), preprocess="standardize"))  # fmt: skip
@register("resnet32_cifar", n=5, info=Info(params=464_154, macs=68_862_592,
    paper="1512.03385", input_size=(32, 32, 3), preprocess="standardize"))  # fmt: skip
@register("resnet44_cifar", n=7, info=Info(params=658_586, macs=97_174_144,
    paper="1512.03385", input_size=(32, 32, 3), preprocess="standardize"))  # fmt: skip
@register("resnet56_cifar", n=9, info=Info(params=853_018, macs=125_485_696,
    paper="1512.03385", input_size=(32, 32, 3), preprocess="standardize"))  # fmt: skip
@register("resnet110_cifar", n=18, info=Info(params=1_727_962, macs=252_887_680,
    paper="1512.03385", input_size=(32, 32, 3), preprocess="standardize"))  # fmt: skip
@register("resnet1202_cifar", n=200, scan_blocks=True, info=Info(params=19_421_274,
    macs=2_829_238_912, paper="1512.03385", input_size=(32, 32, 3),
    preprocess="standardize"))  # fmt: skip
class ResNetCIFAR(nn.Module):
    """6n + 2 layers.

    Endpoints: "stem" [N, H, W, 16]; "layer1" to "layer3", of strides 1, 2, 4 and 16,
    32, 64 channels.

    Attributes:
      num_classes: number of classes; 0 returns pooled features, [N, 64].
      n: blocks of each of the three stages.
      shortcut: "A", "B", "C", or "none" for a plain network.
      norm: "batchnorm", or one of "evonorm_b0" to "evonorm_s2".
      scan_blocks: compile the blocks of a stage once, run them in a loop.
      remat: train in less memory, see `flaxcnn.models.resnet.Block`.
      dtype: of the computation; parameters stay float32, logits at least that.
    """

    num_classes: int = 10
    n: int = 3
    shortcut: str = "A"
    norm: str = "batchnorm"
    scan_blocks: bool = False
    remat: bool = False
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool, endpoints: bool = False
    ) -> jax.Array | tuple[jax.Array, dict[str, jax.Array]]:
        """Logits [N, num_classes] of images [N, H, W, C] of any size."""
        check_images("ResNet", x)
        block = functools.partial(
            BasicBlock, shortcut=self.shortcut, norm=self.norm, remat=self.remat,
            dtype=self.dtype,
        )  # fmt: skip
        ends = {}

        x = Conv(16, (3, 3), 1, 1, use_bias=False, kernel_init=he_normal_fan_out,
                 dtype=self.dtype, name="conv1")(x)  # fmt: skip
        x = ends["stem"] = norm_act(x, self.norm, train, "bn1")
        for i, width in enumerate((16, 32, 64), start=1):
            x = stage(self, i, block, width, self.n, x, train, self.scan_blocks)
            ends[f"layer{i}"] = x  # [N, 32, 32, 16], ..., [N, 8, 8, 64]
        x = ends["pre_logits"] = global_avg_pool(x)
        x = classify(x, self.num_classes, "linear", train=train)
        return (x, ends) if endpoints else x
