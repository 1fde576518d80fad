"""Pooling of [N, H, W, C] with torch's semantics, one axis after the other.

The maximum, the sum and the p-norm over a window are those over its rows of those
over its columns, so every pooling is two passes over a few strided slices. (Stock
max pooling has the gradient select-and-scatter: slow, and not deterministic on GPU.)
"""

from functools import partial, reduce

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from flaxcnn.errors import FlaxcnnError
from flaxcnn.layers.arithmetic import conv_output_size

Size = int | tuple[int, int]


def max_pool(
    x: Array,
    window: Size,
    strides: Size | None = None,
    padding: Size = 0,
    ceil_mode: bool = False,
) -> Array:
    """Maximum over windows, [N, H, W, C] to [N, H', W', C].

    `strides` default to the window; `padding` counts as -inf. `ceil_mode` adds a last
    window that leaves the input, by `conv_output_size`'s rule. The gradient goes to
    the first maximum of each window, row by row, as in torch. Raises FlaxcnnError if
    the window does not fit or the padding is more than half of it.
    """
    for axis, k, s, p, out in _axes(x, window, strides, padding, ceil_mode):
        x = _max(_frame(x, axis, k, s, p, out, -np.inf), axis, k, s)
    return x


def avg_pool(
    x: Array,
    window: Size,
    strides: Size | None = None,
    padding: Size = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Array:
    """Mean over windows, [N, H, W, C] to [N, H', W', C], arguments as in `max_pool`.

    The divisor counts the padding (of zeros) unless `count_include_pad` is false; what
    `ceil_mode` adds beyond it never counts, as in torch. Accumulates in float32 or
    better.
    """
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    for axis, k, s, p, out in _axes(x, window, strides, padding, ceil_mode):
        margin = p if count_include_pad else 0
        start = np.arange(out) * s - p
        stop = np.minimum(start + k, x.shape[axis] + margin)
        count = stop - np.maximum(start, -margin)
        total = reduce(jnp.add, _taps(_frame(y, axis, k, s, p, out, 0), axis, k, s))
        y = total / jnp.asarray(count, y.dtype).reshape((-1, *[1] * (3 - axis)))
    return y.astype(x.dtype)


def adaptive_avg_pool(x: Array, size: tuple[int, int]) -> Array:
    """Mean over windows that make the output `size`, [N, H, W, C] to [N, *size, C].

    torch's AdaptiveAvgPool2d: window i of n covers floor(i H / n) to
    ceil((i + 1) H / n); what is smaller than `size` is repeated. Accumulates in float32
    or better.
    """
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    for axis, out in zip((1, 2), size, strict=True):
        given = x.shape[axis]
        if given == out:
            continue
        edges = np.arange(out + 1) * given
        windows = zip(edges[:-1] // out, -(-edges[1:] // out), strict=True)
        means = [
            lax.slice_in_dim(y, start, stop, axis=axis).mean(axis)
            for start, stop in windows
        ]
        y = jnp.stack(means, axis)
    return y.astype(x.dtype)


def global_avg_pool(x: Array) -> Array:
    """Mean over the feature map, [N, H, W, C] to [N, C] (NiN, arXiv:1312.4400, 3.2).

    Accumulates in float32 or better.
    """
    return x.mean((1, 2), dtype=jnp.promote_types(x.dtype, jnp.float32)).astype(x.dtype)


def p_norm_pool(
    x: Array, p: float, window: Size, strides: Size | None = None, padding: Size = 0
) -> Array:
    """(sum |x|^p)^(1/p) over windows, [N, H, W, C] to [N, H', W', C].

    All-CNN, arXiv:1412.6806, equation 1; other arguments as in `max_pool`. Tends to
    max pooling of |x| as p grows. Any p >= 1 is safe: the window's maximum is factored
    out, and an all-zero window has gradient zero. Raises FlaxcnnError for p < 1.
    """
    if p < 1:
        raise FlaxcnnError(f"p_norm_pool has p = {p}, which is no norm; use p >= 1")
    x = jnp.abs(x)
    for axis, k, s, pad, out in _axes(x, window, strides, padding, False):
        taps = _taps(_frame(x, axis, k, s, pad, out, 0), axis, k, s)
        # The norm does not depend on the factor taken out: neither does its gradient.
        peak = lax.stop_gradient(reduce(jnp.maximum, taps))
        zero = peak == 0
        safe = jnp.where(zero, 1, peak)
        total = sum((tap / safe) ** p for tap in taps)
        x = peak * jnp.where(zero, 1, total) ** (1 / p)
    return x


def _axes(
    x: Array, window: Size, strides: Size | None, padding: Size, ceil_mode: bool
) -> list[tuple[int, int, int, int, int]]:
    """(axis, window, stride, padding, output size) for W, then H.

    W first: then the first maximum is the first in row-major order.
    """
    if x.ndim != 4:
        raise FlaxcnnError(
            f"pooling input has shape {x.shape}; reshape it to [N, H, W, C]"
        )
    strides = window if strides is None else strides
    axes = []
    for axis in (2, 1):
        k, s, p = (
            v if isinstance(v, int) else v[axis - 1] for v in (window, strides, padding)
        )
        if p > k // 2:
            raise FlaxcnnError(
                f"pooling padding {p} is more than half the window {k}; use less"
            )
        size = conv_output_size(x.shape[axis], k, s, p, ceil_mode=ceil_mode)
        axes.append((axis, k, s, p, size))
    return axes


def _frame(x: Array, axis: int, k: int, s: int, p: int, out: int, fill: float) -> Array:
    """Pad and crop the axis to what `out` windows cover."""
    pads = [(0, 0, 0)] * x.ndim
    pads[axis] = (p, (out - 1) * s + k - p - x.shape[axis], 0)
    return lax.pad(x, jnp.asarray(fill, x.dtype), pads)


def _taps(x: Array, axis: int, k: int, s: int) -> list[Array]:
    """What each of the k window positions sees, window by window along the axis."""
    span = x.shape[axis] - k + 1
    return [lax.slice_in_dim(x, i, i + span, s, axis) for i in range(k)]


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _max(x: Array, axis: int, k: int, s: int) -> Array:
    return reduce(jnp.maximum, _taps(x, axis, k, s))


def _max_fwd(x: Array, axis: int, k: int, s: int) -> tuple[Array, Array]:
    best, *taps = _taps(x, axis, k, s)
    winner = jnp.zeros(best.shape, np.min_scalar_type(k))
    for i, tap in enumerate(taps, 1):
        winner = jnp.where(tap > best, i, winner)
        best = jnp.maximum(best, tap)
    return best, winner


def _max_bwd(axis: int, k: int, s: int, winner: Array, g: Array) -> tuple[Array]:
    zero = jnp.zeros((), g.dtype)
    pads = [(0, 0, 0)] * g.ndim
    total = []
    for i in range(k):
        pads[axis] = (i, k - 1 - i, s - 1)
        total.append(lax.pad(jnp.where(winner == i, g, zero), zero, pads))
    return (reduce(jnp.add, total),)


_max.defvjp(_max_fwd, _max_bwd)
