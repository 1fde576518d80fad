"""Going Deeper with Convolutions.

Szegedy, Liu, Jia, Sermanet, Reed, Anguelov, Erhan, Vanhoucke, Rabinovich, 2014
(arXiv:1409.4842): GoogLeNet, or Inception v1.

An Inception module looks at its input at several scales at once: 1x1, 3x3 and 5x5
convolutions and a pooling side by side, concatenated. 1x1 convolutions in front of
the large ones, and behind the pooling, keep that affordable (figure 2b); without them
(2a) the pooling hands on its whole input, and every module is wider than the one
before. Two auxiliary classifiers feed gradient into the middle of the network.

`googlenet` is torchvision's: BatchNorm (epsilon 1e-3) in place of biases and of local
response normalisation, a 3x3 convolution where the paper has 5x5, a 2x2 fourth
pooling. Weights N(0, 0.01): torchvision cuts that at 2, which is 200 deviations out.

`googlenet_paper` is the paper's network. What the paper leaves open is as in caffe's
bvlc_googlenet: pooling that covers the border (ceil mode), the constants of the local
response normalisation, k = 1 and alpha = 1e-4 for the mean of five squares (made for
pixels up to 255: those of scale 1 it hardly changes), uniform weights of variance
1 / fan_in, biases of 0.2 but for the classifiers' 0.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from flaxcnn.errors import FlaxcnnError, unknown
from flaxcnn.layers import (
    BatchNorm,
    Conv,
    MapDense,
    adaptive_avg_pool,
    avg_pool,
    global_avg_pool,
    local_response_norm,
    max_pool,
    relu,
)
from flaxcnn.layers.head import classify
from flaxcnn.layers.init import torch_uniform
from flaxcnn.layers.input import check_images
from flaxcnn.registry import Info, register

Widths = tuple[int, tuple[int, int], tuple[int, int], int]

INCEPTIONS: dict[str, Widths] = {
    # 1x1, (1x1, 3x3), (1x1, 5x5), 1x1 behind the pooling
    "3a": (64, (96, 128), (16, 32), 32),
    "3b": (128, (128, 192), (32, 96), 64),
    "4a": (192, (96, 208), (16, 48), 64),
    "4b": (160, (112, 224), (24, 64), 64),
    "4c": (128, (128, 256), (24, 64), 64),
    "4d": (112, (144, 288), (32, 64), 64),
    "4e": (256, (160, 320), (32, 128), 128),
    "5a": (256, (160, 320), (32, 128), 128),
    "5b": (384, (192, 384), (48, 128), 128),
}
AUXILIARY = {"4a": "aux1", "4d": "aux2"}
MODULES = ("reduced", "naive")


def inits(batch_norm: bool, fan_in: int, bias: float) -> dict[str, Any]:
    """Initializers of a layer: torchvision's, or caffe's with a constant bias."""
    if batch_norm:
        weight = nn.initializers.normal(0.01)
        return {"kernel_init": weight, "bias_init": torch_uniform(fan_in)}
    weight = nn.initializers.lecun_uniform()
    return {"kernel_init": weight, "bias_init": nn.initializers.constant(bias)}


class BasicConv2d(nn.Module):
    """Convolution, BatchNorm or else a bias, ReLU.

    Attributes:
      features: channels of the output.
      kernel: size of the kernel, padded to keep the size.
      stride: of the convolution.
      batch_norm: BatchNorm, not a bias.
      dtype: of the computation.
    """

    features: int
    kernel: int = 1
    stride: int = 1
    batch_norm: bool = True
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        fan_in = self.kernel**2 * x.shape[-1]
        x = Conv(self.features, (self.kernel, self.kernel), self.stride,
                 self.kernel // 2, use_bias=not self.batch_norm, dtype=self.dtype,
                 **inits(self.batch_norm, fan_in, 0.2), name="conv")(x)  # fmt: skip
        if self.batch_norm:
            x = BatchNorm(epsilon=1e-3, dtype=self.dtype, name="bn")(x, train=train)
        return relu(x)


class Inception(nn.Module):
    """Figure 2: [N, H, W, C] to [N, H, W, sum of the branches' widths].

    Attributes:
      widths: a row of `INCEPTIONS`.
      module: "reduced" (figure 2b), or "naive" (2a), whose pooling hands on C channels.
      kernel_5x5: size of the largest kernel.
      batch_norm: BatchNorm, not biases.
      dtype: of the computation.
    """

    widths: Widths
    module: str = "reduced"
    kernel_5x5: int = 3
    batch_norm: bool = True
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        conv = functools.partial(
            BasicConv2d, batch_norm=self.batch_norm, dtype=self.dtype
        )
        ones, threes, fives, projection = self.widths
        branches = [conv(ones, name="branch1")(x, train=train)]
        for name, kernel, (reduced, features) in (
            ("branch2", 3, threes), ("branch3", self.kernel_5x5, fives)
        ):  # fmt: skip
            if self.module == "naive":
                y = conv(features, kernel, name=name)(x, train=train)
            else:
                y = conv(reduced, name=f"{name}.0")(x, train=train)
                y = conv(features, kernel, name=f"{name}.1")(y, train=train)
            branches.append(y)
        y = max_pool(x, 3, 1, padding=1)
        if self.module == "reduced":
            y = conv(projection, name="branch4.1")(y, train=train)
        return jnp.concatenate([*branches, y], axis=-1)


class InceptionAux(nn.Module):
    """An auxiliary classifier: [N, H, W, C] to float32 logits [N, num_classes].

    Attributes:
      num_classes: number of classes.
      dropout: rate of dropout between the two fully connected layers.
      batch_norm: torchvision's head: BatchNorm, adaptive pooling; else the paper's.
      dtype: of the computation.
    """

    num_classes: int
    dropout: float = 0.7
    batch_norm: bool = True
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        if x.shape[1:3] == (14, 14) and not self.batch_norm:
            x = avg_pool(x, 5, 3)
        else:  # the paper's windows give a 4x4 map of its 14x14 only
            x = adaptive_avg_pool(x, (4, 4))
        x = BasicConv2d(128, batch_norm=self.batch_norm, dtype=self.dtype, name="conv")(
            x, train=train
        )  # [N, 4, 4, 128]
        x = MapDense(1024, (4, 4), dtype=self.dtype, name="fc1",
                     **inits(self.batch_norm, 16 * 128, 0.2))(x)  # fmt: skip
        x = relu(x)[:, 0, 0]
        return classify(x, self.num_classes, "fc2", train=train, dropout=self.dropout,
                        **inits(self.batch_norm, 1024, 0.0))  # fmt: skip


@register("googlenet", info=Info(
    params=6_624_904, macs=1_498_376_192, paper="1409.4842", preprocess="inception",
    aux_weights={"aux1": 0.3, "aux2": 0.3}))  # fmt: skip
@register("googlenet_paper", batch_norm=False, kernel_5x5=5, pool4=3, dropout=0.4,
    info=Info(params=6_998_552, macs=1_582_671_872, paper="1409.4842",
    preprocess="imagenet_255", aux_weights={"aux1": 0.3, "aux2": 0.3}))  # fmt: skip
class GoogLeNet(nn.Module):
    """Table 1.

    Endpoints: "conv1" [N, H/2, W/2, 64]; "conv3" of stride 4, 192 channels;
    "inception3a", "3b" of stride 8, 256 and 480 channels; "inception4a" to "4e" of
    stride 16, 512, 512, 512, 528 and 832; "inception5a", "5b" of stride 32, 832 and
    1024. With `aux_logits`, in training: "aux1" and "aux2", float32 logits of the
    auxiliary classifiers.

    Attributes:
      num_classes: number of classes; 0 returns pooled features, [N, 1024].
      batch_norm: BatchNorm after every convolution; else biases, and local response
        normalisation in the stem.
      kernel_5x5: size of a module's largest kernel, 5 in the paper.
      pool4: window of the fourth pooling, 3 in the paper; its stride is 2.
      module: "reduced" (figure 2b) or "naive" (2a; 4944 pooled features).
      aux_logits: with the auxiliary classifiers, computed in training only.
      dropout: rate of dropout in front of the classifier.
      aux_dropout: rate of dropout in the auxiliary classifiers.
      dtype: of the computation; parameters stay float32, logits at least that.
    """

    num_classes: int = 1000
    batch_norm: bool = True
    kernel_5x5: int = 3
    pool4: int = 2
    module: str = "reduced"
    aux_logits: bool = False
    dropout: float = 0.2
    aux_dropout: float = 0.7
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool, endpoints: bool = False
    ) -> jax.Array | tuple[jax.Array, dict[str, jax.Array]]:
        """Logits [N, num_classes] of images [N, H, W, C].

        H and W are at least 15, or 31 where `pool4` is 3.
        """
        check_images("GoogLeNet", x, min_size=15 if self.pool4 == 2 else 31)
        if self.module not in MODULES:
            raise unknown("GoogLeNet module", self.module, MODULES)
        if self.aux_logits and not self.num_classes:
            raise FlaxcnnError(
                "GoogLeNet: auxiliary classifiers need classes; "
                "set num_classes, or aux_logits=False"
            )
        norm, dtype = self.batch_norm, self.dtype
        conv = functools.partial(BasicConv2d, batch_norm=norm, dtype=dtype)
        inception = functools.partial(
            Inception, module=self.module, kernel_5x5=self.kernel_5x5,
            batch_norm=norm, dtype=dtype,
        )  # fmt: skip
        auxiliary = functools.partial(
            InceptionAux, self.num_classes, self.aux_dropout, norm, dtype
        )
        ends = {}

        def normalize(x: jax.Array) -> jax.Array:
            return x if self.batch_norm else local_response_norm(x, 5, 1.0, 1e-4 / 5)

        x = ends["conv1"] = conv(64, 7, 2, name="conv1")(x, train=train)
        x = normalize(max_pool(x, 3, 2, ceil_mode=True))  # [N, 56, 56, 64]
        x = conv(64, name="conv2")(x, train=train)
        x = ends["conv3"] = conv(192, 3, name="conv3")(x, train=train)
        x = max_pool(normalize(x), 3, 2, ceil_mode=True)  # [N, 28, 28, 192]
        for block, widths in INCEPTIONS.items():
            if block == "4a":
                x = max_pool(x, 3, 2, ceil_mode=True)  # [N, 14, 14, 480]
            if block == "5a":
                x = max_pool(x, self.pool4, 2, ceil_mode=True)  # [N, 7, 7, 832]
            name = f"inception{block}"
            x = ends[name] = inception(widths, name=name)(x, train=train)
            if block in AUXILIARY and self.aux_logits:
                name = AUXILIARY[block]
                if train:
                    ends[name] = auxiliary(name=name)(x, train=True)
                elif self.is_initializing():  # their parameters, whatever the mode
                    auxiliary(name=name)(x, train=False)
        x = ends["pre_logits"] = global_avg_pool(x)
        x = classify(x, self.num_classes, "fc", train=train, dropout=self.dropout,
                     **inits(norm, x.shape[-1], 0.0))  # fmt: skip
        return (x, ends) if endpoints else x
