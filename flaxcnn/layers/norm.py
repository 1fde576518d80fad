"""Normalisation layers."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import canonicalize_dtype
from flax.typing import Dtype
from jax import Array, lax

from flaxcnn.errors import FlaxcnnError
from flaxcnn.layers.precision import wide


class BatchNorm(nn.Module):
    """Batch normalisation with the semantics of `torch.nn.BatchNorm2d` (and 1d).

    Ioffe and Szegedy 2015, arXiv:1502.03167, algorithm 1. Normalises every channel of
    [N, H, W, C] or [N, C] over all other axes:
    y = (x - mean) / sqrt(var + epsilon) * scale + bias.

    `momentum` is torch's, the weight of the new value (flax's is one minus it):
    running = (1 - momentum) * running + momentum * batch. With `train=True` the batch
    is normalised by its own biased variance, and the running variance takes the
    unbiased one, n / (n - 1) times as large; with `train=False` the running statistics
    normalise. Parameters `scale` and `bias`, collection `batch_stats` with `mean` and
    `var`, all float32; initialisation leaves the statistics at 0 and 1.

    A batch that `jax.jit` shards over devices is normalised by its global statistics.
    For the backward pass of training (reverse mode only) x alone is kept, in its own
    dtype. Variables of `flaxcnn.fold_batchnorm` have `folded_bias` alone: it is added.

    Raises FlaxcnnError for training with such variables.
    """

    momentum: float = 0.1
    epsilon: float = 1e-5
    use_scale: bool = True
    use_bias: bool = True
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        shape = x.shape[-1:]
        if self.has_variable("params", "folded_bias"):
            return self._add_folded(x, train)
        scale = bias = None
        if self.use_scale:
            scale = self.param("scale", nn.initializers.ones, shape, jnp.float32)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape)
        dtype = canonicalize_dtype(x, scale, bias, dtype=self.dtype)
        kind = wide(x[:0]).dtype
        scale = jnp.ones(shape, kind) if scale is None else scale.astype(kind)
        bias = jnp.zeros(shape, kind) if bias is None else bias.astype(kind)

        if not train:
            factor = lax.rsqrt(running_var.value + self.epsilon) * scale
            return _affine(x, running_mean.value, factor, bias).astype(dtype)
        y, mean, var = _normalise(x, scale, bias, self.epsilon)
        if not self.is_initializing():
            update = partial(running_average, momentum=self.momentum)
            running_mean.value = update(running_mean.value, mean)
            running_var.value = update(running_var.value, unbiased(var, x))
        return y.astype(dtype)

    def _add_folded(self, x: Array, train: bool) -> Array:
        if train:
            raise FlaxcnnError(
                f"BatchNorm {self.name} is folded into a convolution and cannot train; "
                "use the variables that fold_batchnorm was given"
            )
        bias: Array = self.get_variable("params", "folded_bias")
        dtype = canonicalize_dtype(x, bias, dtype=self.dtype)
        return (wide(x) + bias).astype(dtype)


def running_average(running: Array, batch: Array, momentum: float) -> Array:
    """(1 - momentum) * running + momentum * batch, in running's dtype."""
    return (1 - momentum) * running + momentum * batch.astype(running.dtype)


def unbiased(var: Array, x: Array) -> Array:
    """n / (n - 1) times the biased variance per channel of x, of n values each."""
    n = x.size // x.shape[-1]
    return var * (n / max(n - 1, 1))


def _affine(x: Array, mean: Array, factor: Array, bias: Array) -> Array:
    return (wide(x) - mean) * factor + bias


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _normalise(
    x: Array, scale: Array, bias: Array, epsilon: float
) -> tuple[Array, Array, Array]:
    """The normalised batch, its mean and its biased variance per channel.

    Derived step by step it would keep x - mean, in float32.
    """
    mean, var = _moments(wide(x))
    return _affine(x, mean, lax.rsqrt(var + epsilon) * scale, bias), mean, var


def _normalise_fwd(
    x: Array, scale: Array, bias: Array, epsilon: float
) -> tuple[tuple[Array, Array, Array], tuple[Array, ...]]:
    y, mean, var = _normalise(x, scale, bias, epsilon)
    return (y, mean, var), (x, mean, lax.rsqrt(var + epsilon), scale)


def _normalise_bwd(
    epsilon: float, residuals: tuple[Array, ...], gradients: tuple[Array, Array, Array]
) -> tuple[Array, Array, Array]:
    """dx is affine in the gradient of y and in x, with coefficients per channel."""
    x, mean, rstd, scale = residuals
    g, g_mean, g_var = gradients
    axes, n = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
    g_bias = g.sum(axes)
    # Not the sum of g * (x - mean): XLA would compute x - mean in the forward pass,
    # and keep it. Both rest on a mean rounded to float32, which limits both.
    g_scale = ((g * wide(x)).sum(axes) - mean * g_bias) * rstd
    of_x = (2 * g_var - scale * rstd**2 * g_scale) / n
    constant = (g_mean - scale * rstd * g_bias) / n
    dx = scale * rstd * g + of_x * (wide(x) - mean) + constant
    return dx.astype(x.dtype), g_scale, g_bias


_normalise.defvjp(_normalise_fwd, _normalise_bwd)


def _moments(x: Array) -> tuple[Array, Array]:
    """Mean and biased variance per channel, in one pass.

    E[x^2] - E[x]^2 would cancel where |mean| is much larger than std. Shifted by one of
    the values it does not, unless that one is as far from all others.
    """
    axes = tuple(range(x.ndim - 1))
    shift = x[(0,) * len(axes)]
    x = x - shift
    mean = x.mean(axes)
    return mean + shift, jnp.maximum(jnp.square(x).mean(axes) - jnp.square(mean), 0)


def local_response_norm(
    x: Array, size: int = 5, k: float = 2.0, alpha: float = 1e-4, beta: float = 0.75
) -> Array:
    """Divide by a power of the local energy across channels, [..., C] to [..., C].

    y_i = x_i / (k + alpha * sum_j x_j^2)^beta, where j runs over the `size` channels
    centred on i (Krizhevsky et al. 2012, section 3.3). torch and caffe divide their
    alpha by size: pass theirs as alpha / size. Raises FlaxcnnError if size is even.
    """
    if size < 1 or size % 2 == 0:
        raise FlaxcnnError(f"LRN size {size} has no centre channel; use an odd size")
    half, channels = size // 2, x.shape[-1]
    square = jnp.square(wide(x))
    square = jnp.pad(square, [(0, 0)] * (x.ndim - 1) + [(half, half)])
    energy = sum(square[..., i : i + channels] for i in range(size))
    return (x * (k + alpha * energy) ** -beta).astype(x.dtype)
