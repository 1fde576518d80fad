"""Rethinking the Inception Architecture for Computer Vision.

Szegedy, Vanhoucke, Ioffe, Shlens, Wojna, 2015 (arXiv:1512.00567).

Large convolutions are replaced by small ones with the same field of view: 5x5 by two
3x3 (figures 4 and 5), 7x7 by 1x7 and 7x1 (figure 6), and a grid is reduced by strided
convolutions and a pooling side by side (figure 10). The last modules end in a 1x3 and a
3x1 side by side, for many channels on the coarsest grid (figure 7). One auxiliary head,
a regularizer, hangs on the last 17x17 module (figure 8).

The defaults are the released network, with torchvision's keys. The structural rows of
the paper's table 3 and its figures are fields; the rows "RMSProp" and "label smoothing"
are training recipes. Kernels are drawn as in torchvision, from N(0, 0.1) (its cut at
+-2 is 20 standard deviations away), 0.001 for the last of the auxiliary head, and 0.01
for the one before, for which torchvision means to. Its `transform_input` is our
preprocessing, "inception": pixels in [-1, 1].
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from flaxcnn.errors import FlaxcnnError
from flaxcnn.layers import BatchNorm, Conv, avg_pool, global_avg_pool, max_pool, relu
from flaxcnn.layers.head import classify
from flaxcnn.layers.init import torch_uniform
from flaxcnn.layers.input import check_images
from flaxcnn.registry import Info, register

Pair = tuple[int, int]
Kernel = int | Pair
# Of each branch its convolutions: (channels, kernel), or two kernels side by side.
Branches = Mapping[str, Sequence[tuple[Any, ...]]]


def module_a(pool: int, factorized_5x5: bool) -> Branches:
    """35x35 pixels: figure 5, but the release keeps one of the two 5x5."""
    return {
        "branch1x1": [(64, 1)],
        "branch5x5": [(48, 1), (64, 3), (64, 3)] if factorized_5x5
                     else [(48, 1), (64, 5)],
        "branch3x3dbl": [(64, 1), (96, 3), (96, 3)],
        "branch_pool": [(pool, 1)],
    }  # fmt: skip


def module_b() -> Branches:
    """35x35 to 17x17 pixels: figure 10."""
    return {"branch3x3": [(384, 3)], "branch3x3dbl": [(64, 1), (96, 3), (96, 3)]}


def module_c(c: int, factorized_nxn: bool) -> Branches:
    """17x17 pixels: figure 6, or with whole 7x7 convolutions."""
    row, column = (1, 7), (7, 1)
    if factorized_nxn:
        once = [(c, 1), (c, row), (192, column)]
        twice = [(c, 1), (c, column), (c, row), (c, column), (192, row)]
    else:
        once = [(c, 1), (192, 7)]
        twice = [(c, 1), (c, 7), (192, 7)]
    return {
        "branch1x1": [(192, 1)],
        "branch7x7": once,
        "branch7x7dbl": twice,
        "branch_pool": [(192, 1)],
    }


def module_d(factorized_nxn: bool) -> Branches:
    """17x17 to 8x8 pixels: figure 10."""
    seven = [(192, (1, 7)), (192, (7, 1))] if factorized_nxn else [(192, 7)]
    return {
        "branch3x3": [(192, 1), (320, 3)],
        "branch7x7x3": [(192, 1), *seven, (192, 3)],
    }


def module_e(expanded: bool) -> Branches:
    """8x8 pixels: figure 7, or figure 5's 3x3 at the end of its branches."""
    last = (384, (1, 3), (3, 1)) if expanded else (384, 3)
    return {
        "branch1x1": [(320, 1)],
        "branch3x3": [(384, 1), last],
        "branch3x3dbl": [(448, 1), (384, 3), last],
        "branch_pool": [(192, 1)],
    }


class BasicConv2d(nn.Module):
    """Convolution, BatchNorm, ReLU: [N, H, W, C] to [N, H', W', features].

    Attributes:
      features: output channels.
      kernel: size.
      stride: of the convolution.
      same: pad to keep the size, or not at all.
      norm: BatchNorm; without it the convolution has a bias.
      stddev: of the initial kernel.
      dtype: of the computation.
    """

    features: int
    kernel: Kernel
    stride: int = 1
    same: bool = True
    norm: bool = True
    stddev: float = 0.1
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        k = self.kernel
        kh, kw = (k, k) if isinstance(k, int) else k
        padding = (kh // 2, kw // 2) if self.same else 0
        x = Conv(self.features, (kh, kw), self.stride, padding, use_bias=not self.norm,
                 kernel_init=nn.initializers.normal(self.stddev), dtype=self.dtype,
                 name="conv")(x)  # fmt: skip
        if self.norm:
            x = BatchNorm(epsilon=1e-3, dtype=self.dtype, name="bn")(x, train=train)
        return relu(x)


class Inception(nn.Module):
    """Branches side by side, their channels concatenated.

    Attributes:
      branches: the convolutions of each; "branch_pool" averages 3x3 pixels before.
      stride: 2 in the last convolution of each branch reduces the grid, with a max
        pooling as one more branch; there nothing is padded.
      dtype: of the computation.
    """

    branches: Branches
    stride: int = 1
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[N, H, W, C] to [N, H', W', channels of all branches]."""
        conv = functools.partial(BasicConv2d, dtype=self.dtype)
        outputs = []
        for branch, steps in self.branches.items():
            y = avg_pool(x, 3, 1, padding=1) if branch == "branch_pool" else x
            for i, (features, *kernels) in enumerate(steps, start=1):
                s = self.stride if i == len(steps) else 1
                name = branch if len(steps) == 1 else f"{branch}_{i}"
                names = [name] if len(kernels) == 1 else [f"{name}a", f"{name}b"]
                sides = [
                    conv(features, kernel, s, same=s == 1, name=name)(y, train=train)
                    for kernel, name in zip(kernels, names, strict=True)
                ]
                y = jnp.concatenate(sides, -1)
            outputs.append(y)
        if self.stride > 1:
            outputs.append(max_pool(x, 3, self.stride))
        return jnp.concatenate(outputs, -1)


class InceptionAux(nn.Module):
    """The auxiliary head (figure 8): [N, 17, 17, C] to logits [N, num_classes].

    On smaller maps, of images under 299 pixels, its windows of 5x5 are as large as what
    they see. So the size of the images decides the shape of its kernel.

    Attributes:
      num_classes: number of classes.
      bn_aux: BatchNorm in its fully connected layer, which is the 5x5 convolution.
      dtype: of the computation.
    """

    num_classes: int
    bn_aux: bool = True
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        def window(x: jax.Array) -> Pair:
            return min(5, x.shape[1]), min(5, x.shape[2])

        conv = functools.partial(BasicConv2d, same=False, dtype=self.dtype)
        x = avg_pool(x, window(x), 3)  # [N, 5, 5, 768]
        x = conv(128, 1, name="conv0")(x, train=train)
        self.check_kernel(window(x))
        x = conv(768, window(x), norm=self.bn_aux, stddev=0.01, name="conv1")(
            x, train=train
        )
        x = global_avg_pool(x)
        return classify(x, self.num_classes, "fc", train=train,
                        kernel_init=nn.initializers.normal(0.001),
                        bias_init=torch_uniform(x.shape[-1]))  # fmt: skip

    def check_kernel(self, window: Pair) -> None:
        layer = self.variables.get("params", {}).get("conv1")
        size = layer["conv"]["kernel"].shape[:2] if layer else window
        if size != window:
            raise FlaxcnnError(
                "the auxiliary head has a kernel of {}x{}, and {}x{} pixels for it; "
                "use images of the size it was made for (299x299 in published "
                "weights), or aux_logits=False".format(*size, *window)
            )


def check_input(name: str, x: jax.Array, num_classes: int, aux: bool) -> None:
    """`check_images`; an auxiliary head needs classes."""
    check_images(name, x, min_size=75)
    if aux and num_classes == 0:
        raise FlaxcnnError(
            f"{name}: num_classes=0 leaves the auxiliary head no classes; "
            "use aux_logits=False"
        )


@register("inception_v3", info=Info(params=23_834_568, macs=5_713_216_096,
    paper="1512.00567", input_size=(299, 299, 3), preprocess="inception",
    aux_weights={"aux": 0.4}))  # fmt: skip
class InceptionV3(nn.Module):
    """Table 1.

    Endpoints: "Conv2d_4a_3x3" of stride 4 and 192 channels; of stride 8 "Mixed_5b"
    (256), "Mixed_5c" and "Mixed_5d" (288); of stride 16 "Mixed_6a" to "Mixed_6e" (768);
    of stride 32 "Mixed_7a" (1280), "Mixed_7b" and "Mixed_7c" (2048). With `aux_logits`,
    in training, "aux": the auxiliary head's logits.

    Attributes:
      num_classes: number of classes; 0 returns pooled features, [N, 2048].
      aux_logits: the auxiliary head, whose kernel is smaller than the published 5x5 in
        a network initialized with images under 299x299 pixels.
      factorized_7x7: three 3x3 convolutions in the stem, not one 7x7 of stride 2
        ("factorized 7x7" of table 3); the grid behind them is the same.
      factorized_5x5: two 3x3 also for the 5x5 that the release keeps at 35x35 pixels
        (figure 5, to the letter).
      factorized_nxn: 1x7 and 7x1 at 17x17 pixels (figure 6), not whole 7x7.
      expanded: 1x3 and 3x1 side by side at 8x8 pixels (figure 7). Without, one 3x3 with
        the channels of one of them (figure 5): 1280 leave the modules, not 2048.
      bn_aux: BatchNorm in the auxiliary head's fully connected layer too
        ("BN-auxiliary" of table 3).
      dropout: rate of dropout on the pooled features.
      dtype: of the computation; parameters stay float32, logits at least that.
    """

    num_classes: int = 1000
    aux_logits: bool = False
    factorized_7x7: bool = True
    factorized_5x5: bool = False
    factorized_nxn: bool = True
    expanded: bool = True
    bn_aux: bool = True
    dropout: float = 0.5
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool, endpoints: bool = False
    ) -> jax.Array | tuple[jax.Array, dict[str, jax.Array]]:
        """Logits [N, num_classes] of images [N, H, W, C], H and W at least 75."""
        aux = self.aux_logits and (train or self.is_initializing())
        check_input("Inception v3", x, self.num_classes, aux)
        conv = functools.partial(BasicConv2d, same=False, dtype=self.dtype)
        ends: dict[str, jax.Array] = {}

        if self.factorized_7x7:
            x = conv(32, 3, 2, name="Conv2d_1a_3x3")(x, train=train)
            x = conv(32, 3, name="Conv2d_2a_3x3")(x, train=train)
            x = conv(64, 3, same=True, name="Conv2d_2b_3x3")(x, train=train)
        else:
            x = conv(64, 7, 2, name="Conv2d_1a_7x7")(x, train=train)
        # [N, 147, 147, 64]
        x = max_pool(x, 3, 2)  # [N, 73, 73, 64]
        x = conv(80, 1, name="Conv2d_3b_1x1")(x, train=train)
        x = conv(192, 3, name="Conv2d_4a_3x3")(x, train=train)
        ends["Conv2d_4a_3x3"] = x  # [N, 71, 71, 192]
        x = max_pool(x, 3, 2)  # [N, 35, 35, 192]
        for name, branches in self.modules().items():
            stride = 2 if name in ("Mixed_6a", "Mixed_7a") else 1
            module = Inception(branches, stride, dtype=self.dtype, name=name)
            x = ends[name] = module(x, train=train)
        if aux:
            head = InceptionAux(self.num_classes, self.bn_aux, self.dtype,
                                name="AuxLogits")  # fmt: skip
            logits = head(ends["Mixed_6e"], train=train)
            if train:
                ends["aux"] = logits
        x = ends["pre_logits"] = global_avg_pool(x)
        x = classify(x, self.num_classes, "fc", train=train, dropout=self.dropout,
                     kernel_init=nn.initializers.normal(0.1),
                     bias_init=torch_uniform(x.shape[-1]))  # fmt: skip
        return (x, ends) if endpoints else x

    def modules(self) -> dict[str, Branches]:
        """The branches of each module, in order."""
        return {
            # [N, 35, 35, 256], then 288 channels
            "Mixed_5b": module_a(32, self.factorized_5x5),
            "Mixed_5c": module_a(64, self.factorized_5x5),
            "Mixed_5d": module_a(64, self.factorized_5x5),
            # [N, 17, 17, 768]
            "Mixed_6a": module_b(),
            "Mixed_6b": module_c(128, self.factorized_nxn),
            "Mixed_6c": module_c(160, self.factorized_nxn),
            "Mixed_6d": module_c(160, self.factorized_nxn),
            "Mixed_6e": module_c(192, self.factorized_nxn),
            # [N, 8, 8, 1280], then 2048 channels
            "Mixed_7a": module_d(self.factorized_nxn),
            "Mixed_7b": module_e(self.expanded),
            "Mixed_7c": module_e(self.expanded),
        }
