"""Inception-v4, Inception-ResNet and the Impact of Residual Connections on Learning.

Szegedy, Ioffe, Vanhoucke, Alemi, 2016 (arXiv:1602.07261), section 3.2, figures 10-20.

Inception blocks that add to their input, as in ResNet: the concatenated branches are
projected back to the input's width, scaled down, added, and only then rectified. The
projection has a bias and no BatchNorm. Scales of 0.1 to 0.3 keep networks of more than
1000 channels from dying early in training.

`inception_resnet_v2` is the network whose weights the authors published (and timm
has), which is not the one of the paper: the stem of Inception-v3 and a first mixed
block in place of Inception-v4's stem, twice as many residual blocks, one more without
activation, and a last convolution. `wiring="paper"` is the paper's, and
`inception_resnet_v1` its cheaper sibling; where the printed widths of the projections
(1154 and 2048) are not those of the blocks' inputs, the input's is used.

Names are timm's; arithmetic, initialization and auxiliary head are those of
inception_v4.py, and the projections are drawn by Glorot and Bengio too.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from flaxcnn.errors import unknown
from flaxcnn.layers import Conv, global_avg_pool, max_pool, relu
from flaxcnn.layers.head import classify
from flaxcnn.models.inception_v3 import InceptionAux, check_input
from flaxcnn.models.inception_v4 import (
    Branches,
    ConvBN,
    Convolution,
    Inception,
    concat_branches,
    stem,
)
from flaxcnn.registry import Info, register

MIXED_5B: Branches = (
    ((96, 1, 1),),
    ((48, 1, 1), (64, 5, 5)),
    ((64, 1, 1), (96, 3, 3), (96, 3, 3)),
    ("avg", (64, 1, 1)),
)
BLOCK35: Branches = (
    ((32, 1, 1),),
    ((32, 1, 1), (32, 3, 3)),
    ((32, 1, 1), (48, 3, 3), (64, 3, 3)),
)
BLOCK17: Branches = (
    ((192, 1, 1),),
    ((128, 1, 1), (160, 1, 7), (192, 7, 1)),
)
BLOCK8: Branches = (
    ((192, 1, 1),),
    ((192, 1, 1), (224, 1, 3), (256, 3, 1)),
)
REDUCTION_A: Branches = (
    ((384, 3, 3, 2),),
    ((256, 1, 1), (256, 3, 3), (384, 3, 3, 2)),
    ("max",),
)
REDUCTION_B: Branches = (
    ((256, 1, 1), (384, 3, 3, 2)),
    ((256, 1, 1), (288, 3, 3, 2)),
    ((256, 1, 1), (288, 3, 3), (320, 3, 3, 2)),
    ("max",),
)
V1_BLOCK35: Branches = (
    ((32, 1, 1),),
    ((32, 1, 1), (32, 3, 3)),
    ((32, 1, 1), (32, 3, 3), (32, 3, 3)),
)
V1_BLOCK17: Branches = (
    ((128, 1, 1),),
    ((128, 1, 1), (128, 1, 7), (128, 7, 1)),
)
V1_BLOCK8: Branches = (
    ((192, 1, 1),),
    ((192, 1, 1), (192, 1, 3), (192, 3, 1)),
)
V1_REDUCTION_A: Branches = (
    ((384, 3, 3, 2),),
    ((192, 1, 1), (192, 3, 3), (256, 3, 3, 2)),
    ("max",),
)
V1_REDUCTION_B: Branches = (
    ((256, 1, 1), (384, 3, 3, 2)),
    ((256, 1, 1), (256, 3, 3, 2)),
    ((256, 1, 1), (256, 3, 3), (256, 3, 3, 2)),
    ("max",),
)

# Per stage: the block that opens it, the residual block, and how many of these.
WIRINGS: dict[str, tuple[tuple[Branches | None, Branches, int], ...]] = {
    "released": (
        (MIXED_5B, BLOCK35, 10),
        (REDUCTION_A, BLOCK17, 20),
        (REDUCTION_B, BLOCK8, 9),
    ),
    "paper": (
        (None, BLOCK35, 5),
        (REDUCTION_A, BLOCK17, 10),
        (REDUCTION_B, BLOCK8, 5),
    ),
    "v1": (
        (None, V1_BLOCK35, 5),
        (V1_REDUCTION_A, V1_BLOCK17, 10),
        (V1_REDUCTION_B, V1_BLOCK8, 5),
    ),
}


class Residual(nn.Module):
    """relu(x + scale * projection(branches(x))), figures 10, 11, 13, 16, 17, 19.

    Attributes:
      branches: the block's table.
      scale: of the residual.
      act: apply the ReLU.
      dtype: of the computation.
    """

    branches: Branches
    scale: float
    act: bool = True
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[N, H, W, C] to [N, H, W, C]."""
        y = concat_branches(x, self.branches, train, self.dtype)
        y = Conv(x.shape[-1], (1, 1), kernel_init=nn.initializers.glorot_uniform(),
                 padding=0, dtype=self.dtype, name="conv2d")(y)  # fmt: skip
        x = x + self.scale * y
        return relu(x) if self.act else x


@register("inception_resnet_v1", wiring="v1", info=Info(
    params=22_756_328, macs=6_206_361_696, input_size=(299, 299, 3),
    preprocess="inception", aux_weights={"aux": 0.4}, paper="1602.07261"))  # fmt: skip
@register("inception_resnet_v2", info=Info(
    params=55_843_464, macs=13_155_794_016, input_size=(299, 299, 3),
    preprocess="inception", aux_weights={"aux": 0.4}, paper="1602.07261"))  # fmt: skip
class InceptionResNet(nn.Module):
    """Figure 15, or what was released.

    Endpoints, of strides 8, 8, 8, 16, 16, 32, 32, 32, 32: "stem", "mixed_5b", "repeat",
    "mixed_6a", "repeat_1", "mixed_7a", "repeat_2", "block8", "conv2d_7b". As released
    of 192, 320, 320, 1088, 1088, 2080, 2080, 2080, 1536 channels; the paper's have no
    "mixed_5b", "block8" and "conv2d_7b", and 384, 1152, 2144 channels per stride, 256,
    896, 1792 in v1. In training with `aux_logits` also "aux", as in Inception-v4.

    Attributes:
      num_classes: number of classes; 0 returns pooled features, [N, 1536], or as wide
        as the last block in the paper's.
      wiring: "released" or "paper" (Inception-ResNet-v2), or "v1".
      scales: of the residuals, per stage.
      aux_logits: add the auxiliary head of Inception v3.
      dropout: rate of dropout before the classifier.
      dtype: of the computation; parameters stay float32, logits at least that.
    """

    num_classes: int = 1000
    wiring: str = "released"
    scales: tuple[float, float, float] = (0.17, 0.10, 0.20)
    aux_logits: bool = False
    dropout: float = 0.2
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool, endpoints: bool = False
    ) -> jax.Array | tuple[jax.Array, dict[str, jax.Array]]:
        """Logits [N, num_classes] of images [N, H, W, C], H and W at least 75."""
        if self.wiring not in WIRINGS:
            raise unknown("Inception-ResNet wiring", self.wiring, WIRINGS)
        aux = self.aux_logits and (train or self.is_initializing())
        check_input("Inception-ResNet", x, self.num_classes, aux)
        ends = {}
        x = ends["stem"] = self._stem(x, train)  # [N, 35, 35, 192]
        for (mixed, block, repeats), scale, opening, repeat in zip(
            WIRINGS[self.wiring],
            self.scales,
            ("mixed_5b", "mixed_6a", "mixed_7a"),
            ("repeat", "repeat_1", "repeat_2"),
            strict=True,
        ):
            if mixed:
                # [N, 35, 35, 320], [N, 17, 17, 1088], [N, 8, 8, 2080]
                x = Inception(mixed, self.dtype, name=opening)(x, train=train)
                ends[opening] = x
            for i in range(repeats):
                name = f"{repeat}.{i}"
                residual = Residual(block, scale, dtype=self.dtype, name=name)
                x = residual(x, train=train)
            ends[repeat] = x
        if self.wiring == "released":
            last = Residual(BLOCK8, 1.0, act=False, dtype=self.dtype, name="block8")
            x = ends["block8"] = last(x, train=train)
            conv = ConvBN((1536, 1, 1), self.dtype, name="conv2d_7b")
            x = ends["conv2d_7b"] = conv(x, train=train)
        x = ends["pre_logits"] = global_avg_pool(x)
        init = nn.initializers.glorot_uniform()
        x = classify(x, self.num_classes, "classif", train=train,
                     dropout=self.dropout, kernel_init=init)  # fmt: skip
        if aux:
            head = InceptionAux(self.num_classes, dtype=self.dtype, name="AuxLogits")
            logits = head(ends["repeat_1"], train=train)
            if train:
                ends["aux"] = logits
        return (x, ends) if endpoints else x

    def _stem(self, x: jax.Array, train: bool) -> jax.Array:
        """Inception-v4's, or (figure 14) one in its place without branches."""
        if self.wiring == "paper":
            return stem(x, train, self.dtype, "stem")

        def conv(x: jax.Array, name: str, convolution: Convolution) -> jax.Array:
            return ConvBN(convolution, self.dtype, name=name)(x, train=train)

        x = conv(x, "conv2d_1a", (32, 3, 3, 2))  # [N, 149, 149, 32]
        x = conv(x, "conv2d_2a", (32, 3, 3, 1))  # [N, 147, 147, 32]
        x = conv(x, "conv2d_2b", (64, 3, 3))
        x = max_pool(x, 3, 2)  # [N, 73, 73, 64]
        x = conv(x, "conv2d_3b", (80, 1, 1))
        x = conv(x, "conv2d_4a", (192, 3, 3, 1))  # [N, 71, 71, 192]
        if self.wiring == "v1":
            return conv(x, "conv2d_4b", (256, 3, 3, 2))  # [N, 35, 35, 256]
        return max_pool(x, 3, 2)  # [N, 35, 35, 192]
