"""Deep Residual Learning for Image Recognition.

He, Zhang, Ren, Sun, 2015 (arXiv:1512.03385).

A block learns what to add to its input: y = relu(F(x) + shortcut(x)). Where the shape
changes, the shortcut is a projection (option B), or a subsampling padded with zero
channels (A); option C always projects. `plain*` are the paper's networks without any.

As in torchvision the bottleneck has its stride in the 3x3 convolution ("v1.5");
`stride_in_1x1=True` is the paper's. The same class makes ResNeXt (Xie et al. 2016,
arXiv:1611.05431: grouped 3x3 convolutions) and Wide ResNet (Zagoruyko and Komodakis
2016, arXiv:1605.07146: wider ones). `norm` swaps BatchNorm and ReLU for an EvoNorm
(Liu et al. 2020, arXiv:2004.02967): the last of a block, and a projection's, is affine
only, and ReLU follows the addition; their scales start at 1, as a BatchNorm's. Weights
are drawn as torchvision draws them.
"""

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype
from jax.ad_checkpoint import checkpoint_name

from flaxcnn.errors import FlaxcnnError, unknown
from flaxcnn.layers import BatchNorm, Conv, EvoNorm, global_avg_pool, max_pool, relu
from flaxcnn.layers.evonorm import EVONORMS
from flaxcnn.layers.head import classify
from flaxcnn.layers.init import he_normal_fan_out
from flaxcnn.layers.input import check_images
from flaxcnn.layers.scan import chain_blocks
from flaxcnn.registry import Info, register

SHORTCUTS = ("none", "A", "B", "C")
NORMS = ("batchnorm", *EVONORMS)


def norm_act(
    x: jax.Array, norm: str, train: bool, name: str, act: bool = True
) -> jax.Array:
    """Normalisation and, if `act`, activation."""
    if norm not in NORMS:
        raise unknown("ResNet norm", norm, NORMS)
    if norm == "batchnorm":
        x = BatchNorm(dtype=x.dtype, name=name)(x, train=train)
        return relu(x) if act else x
    return EvoNorm(norm, nonlinearity=act, dtype=x.dtype, name=name)(x, train=train)


class Block(nn.Module):
    """What both blocks have.

    Attributes:
      width: channels of the stage; the output has `expansion` times as many.
      stride: of the block.
      shortcut: "A", "B", "C", or "none" for a plain network.
      norm: "batchnorm", then ReLU, or an EvoNorm.
      groups: of the bottleneck's 3x3 convolution.
      base_width: its width in the first stage, where `width` is 64, per group.
      stride_in_1x1: stride in the bottleneck's first convolution.
      remat: in training keep for the backward pass the input and what the convolutions
        give, but for a bottleneck's last and the shortcut's; compute the rest again.
      dtype: of the computation.
    """

    width: int
    stride: int = 1
    shortcut: str = "B"
    norm: str = "batchnorm"
    groups: int = 1
    base_width: int = 64
    stride_in_1x1: bool = False
    remat: bool = False
    dtype: Dtype = jnp.float32
    expansion: ClassVar[int]

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[N, H, W, C] to [N, H / stride, W / stride, expansion * width]."""

        def forward(block: Any, x: jax.Array) -> jax.Array:
            y: jax.Array = block.forward(x, train)
            return y

        if self.remat and train:
            policy = jax.checkpoint_policies.save_only_these_names("kept")
            forward = nn.remat(forward, policy=policy)
        return forward(self, x)

    def forward(self, x: jax.Array, train: bool) -> jax.Array:
        """relu(F(x) + shortcut(x)), the paper's equation 2."""
        raise NotImplementedError

    def keep(self, x: jax.Array, train: bool) -> jax.Array:
        """x, which `remat` keeps for the backward pass."""
        return checkpoint_name(x, "kept") if self.remat and train else x

    def conv(
        self, features: int, kernel: int, stride: int, name: str, groups: int = 1
    ) -> Conv:
        """A convolution without bias, padded to keep the size."""
        return Conv(features, (kernel, kernel), stride, kernel // 2, use_bias=False,
                    feature_group_count=groups, kernel_init=he_normal_fan_out,
                    dtype=self.dtype, name=name)  # fmt: skip

    def add_shortcut(self, y: jax.Array, x: jax.Array, train: bool) -> jax.Array:
        """relu(y + shortcut(x))."""
        if self.shortcut not in SHORTCUTS:
            raise unknown("ResNet shortcut", self.shortcut, SHORTCUTS)
        if self.shortcut == "none":
            return relu(y)
        if self.shortcut == "C" or (self.shortcut == "B" and x.shape != y.shape):
            x = self.conv(y.shape[-1], 1, self.stride, "downsample.0")(x)
            x = norm_act(x, self.norm, train, "downsample.1", act=False)
        elif x.shape != y.shape:
            extra = y.shape[-1] - x.shape[-1]
            x = x[:, :: self.stride, :: self.stride]
            x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (extra // 2, extra - extra // 2)))
        return relu(y + x)


class BasicBlock(Block):
    """Two 3x3 convolutions (figure 5, left): [N, H, W, C] to [N, H/s, W/s, width]."""

    expansion = 1

    @nn.compact
    def forward(self, x: jax.Array, train: bool) -> jax.Array:
        y = self.conv(self.width, 3, self.stride, "conv1")(x)
        y = norm_act(self.keep(y, train), self.norm, train, "bn1")
        y = self.conv(self.width, 3, 1, "conv2")(y)
        y = norm_act(self.keep(y, train), self.norm, train, "bn2", act=False)
        return self.add_shortcut(y, x, train)


class Bottleneck(Block):
    """1x1, 3x3, 1x1 (figure 5, right): [N, H, W, C] to [N, H/s, W/s, 4 width]."""

    expansion = 4

    @nn.compact
    def forward(self, x: jax.Array, train: bool) -> jax.Array:
        inner = self.width * self.base_width // 64 * self.groups
        first, second = (self.stride, 1) if self.stride_in_1x1 else (1, self.stride)
        y = self.conv(inner, 1, first, "conv1")(x)
        y = norm_act(self.keep(y, train), self.norm, train, "bn1")
        y = self.conv(inner, 3, second, "conv2", self.groups)(y)
        y = norm_act(self.keep(y, train), self.norm, train, "bn2")
        y = self.conv(4 * self.width, 1, 1, "conv3")(y)
        y = norm_act(y, self.norm, train, "bn3", act=False)
        return self.add_shortcut(y, x, train)


def stage(
    parent: nn.Module, number: int, block: Callable[..., Block], width: int,
    blocks: int, x: jax.Array, train: bool, scan: bool,
) -> jax.Array:  # fmt: skip
    """x through the blocks layer<number>.0, .1, ...; the first halves it after stage 1.

    For `parent`'s compact method; with `scan` the blocks of one shape run in a loop.
    """
    first, *others = [f"layer{number}.{i}" for i in range(blocks)]
    block = functools.partial(block, width)
    x = block(1 if number == 1 else 2, name=first)(x, train=train)
    return chain_blocks(parent, block, others, x, train=train, scan=scan)


BLOCKS = {"basic": BasicBlock, "bottleneck": Bottleneck}


@register("resnet18", stages=(2, 2, 2, 2), block="basic", info=Info(
    params=11_689_512, macs=1_814_073_344, paper="1512.03385"))  # fmt: skip
@register("resnet34", stages=(3, 4, 6, 3), block="basic", info=Info(
    params=21_797_672, macs=3_663_761_408, paper="1512.03385"))  # fmt: skip
@register("resnet50", stages=(3, 4, 6, 3), info=Info(
    params=25_557_032, macs=4_089_184_256, paper="1512.03385"))  # fmt: skip
@register("resnet101", stages=(3, 4, 23, 3), info=Info(
    params=44_549_160, macs=7_801_405_440, paper="1512.03385"))  # fmt: skip
@register("resnet152", stages=(3, 8, 36, 3), info=Info(
    params=60_192_808, macs=11_513_626_624, paper="1512.03385"))  # fmt: skip
@register("plain18", stages=(2, 2, 2, 2), block="basic", shortcut="none", info=Info(
    params=11_515_688, macs=1_794_805_760, paper="1512.03385"))  # fmt: skip
@register("plain34", stages=(3, 4, 6, 3), block="basic", shortcut="none", info=Info(
    params=21_623_848, macs=3_644_493_824, paper="1512.03385"))  # fmt: skip
@register("resnext50_32x4d", stages=(3, 4, 6, 3), groups=32, base_width=4, info=Info(
    params=25_028_904, macs=4_230_479_872, paper="1611.05431"))  # fmt: skip
@register("resnext101_32x8d", stages=(3, 4, 23, 3), groups=32, base_width=8, info=Info(
    params=88_791_336, macs=16_414_015_488, paper="1611.05431"))  # fmt: skip
@register("resnext101_64x4d", stages=(3, 4, 23, 3), groups=64, base_width=4, info=Info(
    params=83_455_272, macs=15_460_270_080, paper="1611.05431"))  # fmt: skip
@register("wide_resnet50_2", stages=(3, 4, 6, 3), base_width=128, info=Info(
    params=68_883_240, macs=11_398_021_120, paper="1605.07146"))  # fmt: skip
@register("wide_resnet101_2", stages=(3, 4, 23, 3), base_width=128, info=Info(
    params=126_886_696, macs=22_753_050_624, paper="1605.07146"))  # fmt: skip
class ResNet(nn.Module):
    """Table 1.

    Endpoints: "stem" [N, H/4, W/4, 64]; "layer1" to "layer4", of strides 4, 8, 16, 32
    and 64, 128, 256, 512 channels, four times as many with bottlenecks.

    Attributes:
      num_classes: number of classes; 0 returns pooled features, [N, 512] or [N, 2048].
      stages: blocks of each of the four stages.
      block: "basic" or "bottleneck".
      shortcut: "A", "B", "C", or "none" for a plain network.
      norm: "batchnorm", or one of "evonorm_b0" to "evonorm_s2".
      groups: of the bottleneck's 3x3 convolution (ResNeXt).
      base_width: channels of each group in the first stage (ResNeXt, Wide ResNet).
      stride_in_1x1: the paper's bottleneck, not torchvision's.
      scan_blocks: compile the blocks of a stage once, run them in a loop.
      remat: train in less memory, see `Block`; on CPU with the options of
        `flaxcnn.xla.compiler_options`, as the trainer does.
      dtype: of the computation; parameters stay float32, logits at least that.
    """

    num_classes: int = 1000
    stages: tuple[int, ...] = (3, 4, 6, 3)
    block: str = "bottleneck"
    shortcut: str = "B"
    norm: str = "batchnorm"
    groups: int = 1
    base_width: int = 64
    stride_in_1x1: bool = False
    scan_blocks: bool = False
    remat: bool = False
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool, endpoints: bool = False
    ) -> jax.Array | tuple[jax.Array, dict[str, jax.Array]]:
        """Logits [N, num_classes] of images [N, H, W, C] of any size."""
        check_images("ResNet", x)
        if self.block not in BLOCKS:
            raise unknown("ResNet block", self.block, BLOCKS)
        if self.block == "basic" and (
            self.groups > 1 or self.base_width != 64 or self.stride_in_1x1
        ):
            raise FlaxcnnError(
                "ResNet: groups, base_width and stride_in_1x1 are of the bottleneck; "
                'set block="bottleneck"'
            )
        block = functools.partial(
            BLOCKS[self.block], shortcut=self.shortcut, norm=self.norm,
            groups=self.groups, base_width=self.base_width,
            stride_in_1x1=self.stride_in_1x1, remat=self.remat, dtype=self.dtype,
        )  # fmt: skip
        ends = {}

        x = Conv(64, (7, 7), 2, 3, use_bias=False, kernel_init=he_normal_fan_out,
                 dtype=self.dtype, name="conv1")(x)  # fmt: skip
        x = norm_act(x, self.norm, train, "bn1")  # [N, 112, 112, 64]
        x = ends["stem"] = max_pool(x, 3, 2, padding=1)  # [N, 56, 56, 64]
        for i, blocks in enumerate(self.stages, start=1):
            width = 32 * 2**i
            x = stage(self, i, block, width, blocks, x, train, self.scan_blocks)
            ends[f"layer{i}"] = x  # [N, 56, 56, 256], ..., [N, 7, 7, 2048]
        x = ends["pre_logits"] = global_avg_pool(x)
        x = classify(x, self.num_classes, "fc", train=train)
        return (x, ends) if endpoints else x
