"""Convolution with a gradient that is fast on CPU, and Dense <-> Conv conversion."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from flax.typing import Dtype, Initializer
from jax import Array, lax

from flaxcnn.errors import FlaxcnnError
from flaxcnn.layers import conv_cpu
from flaxcnn.layers.conv_cpu import Pads, Pair

Padding = str | int | Sequence[int | Pair]

Params = dict[str, Array]


class Conv(nn.Module):
    """2-D convolution with the interface and parameters of `flax.linen.Conv`.

    Maps [N, H, W, C] to [N, H', W', features]. Parameters: `kernel`
    [kh, kw, C / feature_group_count, features] and `bias` [features], kept in
    `param_dtype`; input and parameters are promoted to `dtype` to compute. `padding`
    is an int, one int or (low, high) pair per axis, "VALID", or "SAME" (XLA's rule,
    which is not torch's when strides > 1). The gradients are those of `conv`.

    Raises FlaxcnnError for a kernel_size that is not a pair, an input that is not rank
    4 or is smaller than the window, and features that the groups do not divide.
    """

    features: int
    kernel_size: Pair
    strides: int | Pair = 1
    padding: Padding = "SAME"
    kernel_dilation: int | Pair = 1
    feature_group_count: int = 1
    use_bias: bool = True
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        groups = self.feature_group_count
        if x.ndim != 4:
            raise FlaxcnnError(
                f"Conv input has shape {x.shape}; reshape it to [N, H, W, C]"
            )
        if isinstance(self.kernel_size, int | np.integer):
            raise FlaxcnnError(
                f"Conv kernel_size {self.kernel_size} is not a pair; use "
                f"{(self.kernel_size, self.kernel_size)}"
            )
        if x.shape[-1] % groups or self.features % groups:
            raise FlaxcnnError(
                f"Conv maps {x.shape[-1]} to {self.features} channels, which "
                f"{groups} groups do not divide; change feature_group_count"
            )
        strides, dilation = _pair(self.strides), _pair(self.kernel_dilation)
        shape = (*self.kernel_size, x.shape[-1] // groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        bias = None
        if self.use_bias:
            bias = self.param(
                "bias", self.bias_init, (self.features,), self.param_dtype
            )
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        window = [(k - 1) * d + 1 for k, d in zip(shape[:2], dilation, strict=True)]
        padding = _pads(self.padding, x.shape[1:3], window, strides)
        for n, pads, k in zip(x.shape[1:3], padding, window, strict=True):
            if n + sum(pads) < k:
                raise FlaxcnnError(
                    f"Conv window of {tuple(window)} pixels does not fit an input of "
                    f"{x.shape[1:3]} with padding {padding}; use a larger input"
                )
        y = conv(x, kernel, strides, padding, dilation, groups)
        return y if bias is None else y + bias


class MapDense(nn.Module):
    """A fully connected layer on a feature map, which is a convolution over the map.

    Maps [N, H, W, C] of the given `size` (H, W) to [N, 1, 1, features], and slides over
    a larger one: [N, H' - H + 1, W' - W + 1, features] (Long et al. 2014,
    arXiv:1411.4038, section 3.1). Parameters: `map_kernel` [H, W, C, features] and
    `bias`, float32, promoted to `dtype` to compute.

    Raises FlaxcnnError for an input that is not rank 4 or smaller than `size`.
    """

    features: int
    size: Pair
    dtype: Dtype | None = None
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if x.ndim != 4 or x.shape[1] < self.size[0] or x.shape[2] < self.size[1]:
            raise FlaxcnnError(
                f"MapDense input has shape {x.shape}; it needs [N, H, W, C] of at "
                f"least {self.size[0]}x{self.size[1]} pixels"
            )
        shape = (*self.size, x.shape[-1], self.features)
        kernel = self.param("map_kernel", self.kernel_init, shape, jnp.float32)
        bias = self.param("bias", self.bias_init, (self.features,), jnp.float32)
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        if x.shape[1:3] == self.size:
            return jnp.tensordot(x, kernel, 3)[:, None, None] + bias
        return conv(x, kernel) + bias


def conv(
    x: Array,
    kernel: Array,
    strides: Pair = (1, 1),
    padding: Pads = ((0, 0), (0, 0)),
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> Array:
    """Convolve `x` [N, H, W, C] with `kernel` [kh, kw, C / groups, F]: [N, H', W', F].

    `padding` is ((top, bottom), (left, right)). On CPU it and its gradients are
    computed in the forms that are fast there, see `conv_cpu`; other platforms, groups
    (but depthwise) and dilation keep the stock rule. Reverse-mode differentiation only
    where ours applies.
    """
    if groups == x.shape[-1] == kernel.shape[-1] and groups > 1:
        return _depthwise(x, kernel, strides, padding, dilation)
    if groups > 1 or dilation != (1, 1):
        return _stock(x, kernel, strides, padding, dilation, groups)
    return _conv(x, kernel, strides, padding)


def _stock(
    x: Array,
    kernel: Array,
    strides: Pair,
    padding: Pads,
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        strides,
        padding,
        rhs_dilation=dilation,
        dimension_numbers=conv_cpu.LAYOUT,
        feature_group_count=groups,
    )


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv(x: Array, kernel: Array, strides: Pair, padding: Pads) -> Array:
    how: dict[str, Any] = {"strides": strides, "padding": padding}
    stock, ours = partial(_stock, **how), partial(conv_cpu.forward, **how)
    return lax.platform_dependent(x, kernel, cpu=ours, default=stock)


def _conv_fwd(
    x: Array, kernel: Array, strides: Pair, padding: Pads
) -> tuple[Array, tuple[Array, Array]]:
    return _conv(x, kernel, strides, padding), (x, kernel)


def _conv_bwd(
    strides: Pair, padding: Pads, residuals: tuple[Array, Array], g: Array
) -> tuple[Array, Array]:
    x, kernel = residuals
    how: dict[str, Any] = {"strides": strides, "padding": padding}
    return _gradients(
        partial(_stock, **how),
        x,
        kernel,
        g,
        cpu_dx=partial(conv_cpu.input_gradient, **how, size=x.shape[1:3]),
        cpu_dk=partial(conv_cpu.kernel_gradient, **how, window=kernel.shape[:2]),
    )


_conv.defvjp(_conv_fwd, _conv_bwd)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _depthwise(
    x: Array, kernel: Array, strides: Pair, padding: Pads, dilation: Pair
) -> Array:
    how: dict[str, Any] = {"strides": strides, "padding": padding, "dilation": dilation}
    stock = partial(_stock, **how, groups=x.shape[-1])
    ours = partial(conv_cpu.depthwise, **how)
    return lax.platform_dependent(x, kernel, cpu=ours, default=stock)


def _depthwise_fwd(
    x: Array, kernel: Array, strides: Pair, padding: Pads, dilation: Pair
) -> tuple[Array, tuple[Array, Array]]:
    return _depthwise(x, kernel, strides, padding, dilation), (x, kernel)


def _depthwise_bwd(
    strides: Pair,
    padding: Pads,
    dilation: Pair,
    residuals: tuple[Array, Array],
    g: Array,
) -> tuple[Array, Array]:
    x, kernel = residuals
    how: dict[str, Any] = {"strides": strides, "padding": padding, "dilation": dilation}

    def cpu_dx(g: Array, kernel: Array) -> Array:
        ours = partial(conv_cpu.depthwise, kernel=kernel, **how)
        return jax.linear_transpose(ours, x)(g)[0]

    return _gradients(
        partial(_stock, **how, groups=x.shape[-1]),
        x,
        kernel,
        g,
        cpu_dx=cpu_dx,
        cpu_dk=partial(
            conv_cpu.depthwise_kernel_gradient, **how, window=kernel.shape[:2]
        ),
    )


_depthwise.defvjp(_depthwise_fwd, _depthwise_bwd)


def _gradients(
    stock: Callable[[Array, Array], Array],
    x: Array,
    kernel: Array,
    g: Array,
    cpu_dx: Callable[[Array, Array], Array],
    cpu_dk: Callable[[Array, Array], Array],
) -> tuple[Array, Array]:
    """Of input and kernel, by platform: the transposes of `stock(x, kernel)`, or ours.

    Two separate calls, so that an unused input gradient is never computed.
    """

    def stock_dx(g: Array, kernel: Array) -> Array:
        return jax.linear_transpose(lambda x: stock(x, kernel), x)(g)[0]

    def stock_dk(g: Array, x: Array) -> Array:
        return jax.linear_transpose(lambda k: stock(x, k), kernel)(g)[0]

    return (
        lax.platform_dependent(g, kernel, cpu=cpu_dx, default=stock_dx),
        lax.platform_dependent(g, x, cpu=cpu_dk, default=stock_dk),
    )


def _pair(value: int | Pair) -> Pair:
    return (
        (value, value) if isinstance(value, int | np.integer) else (value[0], value[1])
    )


def _pads(
    padding: Padding, size: Sequence[int], window: Sequence[int], strides: Pair
) -> Pads:
    """Padding in any of its spellings as ((top, bottom), (left, right))."""
    if isinstance(padding, str):
        if padding not in ("SAME", "VALID"):
            raise FlaxcnnError(f"unknown padding {padding!r}; use SAME, VALID or ints")
        top, left = lax.padtype_to_pads(size, window, strides, padding)
        return _pair(top), _pair(left)
    both = (padding, padding) if isinstance(padding, int | np.integer) else padding
    if len(both) != 2:
        raise FlaxcnnError(f"padding {padding} is not one entry per axis; give two")
    return _pair(both[0]), _pair(both[1])


def dense_to_conv(params: Params, height: int, width: int) -> Params:
    """Parameters of the Conv that equals a Dense layer on a flattened feature map.

    The kernel [height * width * C, F] becomes [height, width, C, F]: a convolution
    over the whole map, which slides over a larger one. Flattening is that of NHWC.
    Raises FlaxcnnError if height * width does not divide the number of inputs.
    """
    rows, features = params["kernel"].shape
    if rows % (height * width):
        raise FlaxcnnError(
            f"{rows} Dense inputs are no map of {height}x{width}; give its real size"
        )
    return {**params, "kernel": params["kernel"].reshape(height, width, -1, features)}


def conv_to_dense(params: Params) -> Params:
    """The inverse of `dense_to_conv`: a Conv over the whole map as a Dense layer."""
    kernel = params["kernel"]
    return {**params, "kernel": kernel.reshape(-1, kernel.shape[-1])}
