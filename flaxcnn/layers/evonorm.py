"""EvoNorm: normalisation and activation as one layer.

Evolving Normalization-Activation Layers. Liu, Brock, Simonyan, Le, 2020
(arXiv:2004.02967). Where the paper leaves a choice (epsilon, the running variance, a
layer without nonlinearity) ours is timm's.
"""

import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import canonicalize_dtype
from flax.typing import Dtype
from jax import Array

from flaxcnn.errors import unknown
from flaxcnn.layers.norm import running_average, unbiased
from flaxcnn.layers.precision import wide

EVONORMS = tuple(f"evonorm_{kind}" for kind in ("b0", "b1", "b2", "s0", "s1", "s2"))


class EvoNorm(nn.Module):
    """An EvoNorm of [N, H, W, C]; followed by no activation.

    With var over the whole batch for B, over each image and group of channels for S,
    and s(x) = std, r(x) = root mean square of each image's channel (or group):

      b0: x / max(sqrt(var), v x + s(x))    s0: x sigmoid(v x) / s(x)
      b1: x / max(sqrt(var), (x + 1) r(x))  s1: x sigmoid(x) / s(x)
      b2: x / max(sqrt(var), r(x) - x)      s2: x sigmoid(x) / r(x)

    then times `scale`, plus `bias`, per channel; nothing before that if `nonlinearity`
    is false (the last norm of a residual block). `v` [C] is learnt and starts at 1.
    Only the B series has a collection `batch_stats`, with `var` [C]: the running
    unbiased variance, which replaces that of the batch unless `train`; `momentum` is
    the weight of the new value. Statistics are computed in float32.

    Attributes:
      kind: one of `EVONORMS`.
      nonlinearity: false for the affine part alone.
      groups: of channels (S only); the nearest divisor of C below it is used.
      momentum: of the running variance, torch's convention.
      epsilon: added to every variance; None: 1e-3 for b0, else 1e-5, as in timm.
      dtype: of the result.
    """

    kind: str
    nonlinearity: bool = True
    groups: int = 32
    momentum: float = 0.1
    epsilon: float | None = None
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        if self.kind not in EVONORMS:
            raise unknown("EvoNorm", self.kind, EVONORMS)
        shape = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        dtype = canonicalize_dtype(x, scale, bias, dtype=self.dtype)
        x = wide(x)
        if self.nonlinearity:
            x = self._activate(x, train)
        return (x * scale + bias).astype(dtype)

    def _activate(self, x: Array, train: bool) -> Array:
        """The formula of the table, before scale and bias."""
        v: Array | float = 1.0
        if self.kind in ("evonorm_b0", "evonorm_s0"):
            v = self.param("v", nn.initializers.ones, x.shape[-1:], jnp.float32)
        if self.kind.startswith("evonorm_s"):
            return x * nn.sigmoid(v * x) / self._root(x, self._groups(x))
        root = self._root(x, x.shape[-1])  # every channel is a group
        if self.kind == "evonorm_b0":
            local = v * x + root
        elif self.kind == "evonorm_b1":
            local = (x + 1) * root
        else:
            local = root - x
        batch = jnp.sqrt(self._batch_variance(x, train) + self._epsilon)
        return x / jnp.maximum(batch, local)

    @property
    def _epsilon(self) -> float:
        if self.epsilon is not None:
            return self.epsilon
        return 1e-3 if self.kind == "evonorm_b0" else 1e-5

    def _groups(self, x: Array) -> int:
        return max(g for g in range(1, self.groups + 1) if x.shape[-1] % g == 0)

    def _root(self, x: Array, groups: int) -> Array:
        """s(x), or where the formula has it r(x), broadcastable to x."""
        parts = x.reshape(*x.shape[:-1], groups, -1)
        axes = (1, 2, 4)
        centred = self.kind in ("evonorm_b0", "evonorm_s0", "evonorm_s1")
        square = parts.var(axes) if centred else jnp.square(parts).mean(axes)
        root = jnp.sqrt(square + self._epsilon)  # [N, groups]
        return jnp.repeat(root, x.shape[-1] // groups, axis=-1)[:, None, None]

    def _batch_variance(self, x: Array, train: bool) -> Array:
        running = self.variable("batch_stats", "var", jnp.ones, x.shape[-1:])
        if not train:
            return running.value
        var = x.var((0, 1, 2))
        if not self.is_initializing():
            running.value = running_average(
                running.value, unbiased(var, x), self.momentum
            )
        return var
