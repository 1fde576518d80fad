"""Inception-v4, Inception-ResNet and the Impact of Residual Connections on Learning.

Szegedy, Ioffe, Vanhoucke, Alemi, 2016 (arXiv:1602.07261), figures 3-9.

Inception without the compromises of its first, distributed implementation: a stem that
branches too, and three kinds of blocks, all blocks of a kind alike. Each branch is a
sequence of small convolutions; the grid shrinks in reduction blocks only.

Names and arithmetic are timm's (BatchNorm with epsilon 1e-3; average poolings do not
count their padding). The authors' own TF-slim code differs in a BatchNorm without scale
and with momentum 3e-4. Weights are drawn as there: by He et al. in convolutions, by
Glorot and Bengio in linear layers. As there, an auxiliary head, that of Inception v3,
hangs on the last Inception-B, and its loss counts 0.4.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from flaxcnn.layers import BatchNorm, Conv, avg_pool, global_avg_pool, max_pool, relu
from flaxcnn.layers.head import classify
from flaxcnn.models.inception_v3 import InceptionAux, check_input
from flaxcnn.registry import Info, register

# A convolution is (features, kernel height, kernel width[, stride]). With a stride it
# is not padded ("V" in the paper's figures); without one it keeps the size. A branch
# is a sequence of convolutions and 3x3 poolings.
Convolution = tuple[int, int, int] | tuple[int, int, int, int]
Branches = tuple[tuple[str | Convolution, ...], ...]

STEM_4A: Branches = (
    ((64, 1, 1), (96, 3, 3, 1)),
    ((64, 1, 1), (64, 1, 7), (64, 7, 1), (96, 3, 3, 1)),
)
INCEPTION_A: Branches = (
    ((96, 1, 1),),
    ((64, 1, 1), (96, 3, 3)),
    ((64, 1, 1), (96, 3, 3), (96, 3, 3)),
    ("avg", (96, 1, 1)),
)
REDUCTION_A: Branches = (
    ((384, 3, 3, 2),),
    ((192, 1, 1), (224, 3, 3), (256, 3, 3, 2)),
    ("max",),
)
INCEPTION_B: Branches = (
    ((384, 1, 1),),
    ((192, 1, 1), (224, 1, 7), (256, 7, 1)),
    ((192, 1, 1), (192, 7, 1), (224, 1, 7), (224, 7, 1), (256, 1, 7)),
    ("avg", (128, 1, 1)),
)
REDUCTION_B: Branches = (
    ((192, 1, 1), (192, 3, 3, 2)),
    ((256, 1, 1), (256, 1, 7), (320, 7, 1), (320, 3, 3, 2)),
    ("max",),
)


class ConvBN(nn.Module):
    """Convolution without bias, BatchNorm, ReLU."""

    convolution: Convolution
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[N, H, W, C] to [N, H', W', F]."""
        features, height, width, *stride = self.convolution
        padding = 0 if stride else (height // 2, width // 2)
        x = Conv(features, (height, width), stride[0] if stride else 1, padding,
                 use_bias=False, kernel_init=nn.initializers.he_normal(),
                 dtype=self.dtype, name="conv")(x)  # fmt: skip
        x = BatchNorm(epsilon=1e-3, dtype=self.dtype, name="bn")(x, train=train)
        return relu(x)


def concat_branches(
    x: jax.Array, branches: Branches, train: bool, dtype: Dtype
) -> jax.Array:
    """Apply every branch to x and concatenate; modules as timm names them."""
    outputs = []
    for i, steps in enumerate(branches):
        y = x
        for j, step in enumerate(steps):
            if step == "avg":
                y = avg_pool(y, 3, 1, 1, count_include_pad=False)
            elif isinstance(step, str):
                y = max_pool(y, 3, 2)
            else:
                name = f"branch{i}.{j}" if len(steps) > 1 else f"branch{i}"
                y = ConvBN(step, dtype, name=name)(y, train=train)
        outputs.append(y)
    return jnp.concatenate(outputs, -1)


class Inception(nn.Module):
    """The branches of a table, concatenated."""

    branches: Branches
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[N, H, W, C] to [N, H, W, F], or of half the size in a reduction block."""
        return concat_branches(x, self.branches, train, self.dtype)


class InceptionC(nn.Module):
    """Figure 6: two branches end in a 1x3 and a 3x1 convolution side by side."""

    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[N, H, W, C] to [N, H, W, 1536]."""

        def conv(x: jax.Array, name: str, convolution: Convolution) -> jax.Array:
            return ConvBN(convolution, self.dtype, name=name)(x, train=train)

        branch1 = conv(x, "branch1_0", (384, 1, 1))
        branch2 = conv(x, "branch2_0", (384, 1, 1))
        branch2 = conv(branch2, "branch2_1", (448, 3, 1))
        branch2 = conv(branch2, "branch2_2", (512, 1, 3))
        branch3 = avg_pool(x, 3, 1, 1, count_include_pad=False)
        outputs = [
            conv(x, "branch0", (256, 1, 1)),
            conv(branch1, "branch1_1a", (256, 1, 3)),
            conv(branch1, "branch1_1b", (256, 3, 1)),
            conv(branch2, "branch2_3a", (256, 1, 3)),
            conv(branch2, "branch2_3b", (256, 3, 1)),
            conv(branch3, "branch3.1", (256, 1, 1)),
        ]
        return jnp.concatenate(outputs, -1)


def stem(x: jax.Array, train: bool, dtype: Dtype, name: str) -> jax.Array:
    """Figure 3: [N, 299, 299, C] to [N, 35, 35, 384]."""

    def conv(x: jax.Array, key: str, convolution: Convolution) -> jax.Array:
        return ConvBN(convolution, dtype, name=f"{name}.{key}")(x, train=train)

    x = conv(x, "0", (32, 3, 3, 2))  # [N, 149, 149, 32]
    x = conv(x, "1", (32, 3, 3, 1))  # [N, 147, 147, 32]
    x = conv(x, "2", (64, 3, 3))
    y = conv(x, "3.conv", (96, 3, 3, 2))
    x = jnp.concatenate([max_pool(x, 3, 2), y], -1)  # [N, 73, 73, 160]
    x = Inception(STEM_4A, dtype, name=f"{name}.4")(x, train=train)  # [N, 71, 71, 192]
    y = conv(x, "5.conv", (192, 3, 3, 2))
    return jnp.concatenate([y, max_pool(x, 3, 2)], -1)


@register("inception_v4", info=Info(
    params=42_679_816, macs=12_253_974_624, input_size=(299, 299, 3),
    preprocess="inception", aux_weights={"aux": 0.4}, paper="1602.07261"))  # fmt: skip
class InceptionV4(nn.Module):
    """Figure 9.

    Endpoints: "stem" and "inception_a" of stride 8 and 384 channels, "reduction_a" and
    "inception_b" of 16 and 1024, "reduction_b" and "inception_c" of 32 and 1536; "aux",
    the auxiliary head's logits, in training with `aux_logits`.

    Attributes:
      num_classes: number of classes; 0 returns pooled features, [N, 1536].
      aux_logits: add the auxiliary head of Inception v3.
      dropout: rate of dropout before the classifier.
      dtype: of the computation; parameters stay float32, logits at least that.
    """

    num_classes: int = 1000
    aux_logits: bool = False
    dropout: float = 0.2
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool, endpoints: bool = False
    ) -> jax.Array | tuple[jax.Array, dict[str, jax.Array]]:
        """Logits [N, num_classes] of images [N, H, W, C], H and W at least 75."""
        aux = self.aux_logits and (train or self.is_initializing())
        check_input("Inception-v4", x, self.num_classes, aux)
        ends = {}
        x = ends["stem"] = stem(x, train, self.dtype, "features")  # [N, 35, 35, 384]
        index = 6  # the stem's were 0 to 5
        for name, blocks, branches in (
            ("inception_a", 4, INCEPTION_A),
            ("reduction_a", 1, REDUCTION_A),  # [N, 17, 17, 1024]
            ("inception_b", 7, INCEPTION_B),
            ("reduction_b", 1, REDUCTION_B),  # [N, 8, 8, 1536]
        ):
            for _ in range(blocks):
                block = Inception(branches, self.dtype, name=f"features.{index}")
                x = block(x, train=train)
                index += 1
            ends[name] = x
        for i in range(index, index + 3):
            x = InceptionC(self.dtype, name=f"features.{i}")(x, train=train)
        ends["inception_c"] = x
        x = ends["pre_logits"] = global_avg_pool(x)
        init = nn.initializers.glorot_uniform()
        x = classify(x, self.num_classes, "last_linear", train=train,
                     dropout=self.dropout, kernel_init=init)  # fmt: skip
        if aux:
            head = InceptionAux(self.num_classes, dtype=self.dtype, name="AuxLogits")
            logits = head(ends["inception_b"], train=train)
            if train:
                ends["aux"] = logits
        return (x, ends) if endpoints else x
