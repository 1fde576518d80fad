"""Pooling of [N, H, W, C] with torch's semantics, from strided slices.

The sum and the p-norm over a window are those over its rows of those over its columns:
two passes over a few slices. The maximum is one pass over those of all its places, its
gradient one over kinds of pixels. (Stock max pooling has the gradient
select-and-scatter: slow, and not deterministic on GPU.)
"""

from collections.abc import Sequence
from functools import partial, reduce

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from flaxcnn.errors import FlaxcnnError
from flaxcnn.layers.arithmetic import conv_output_size, seen_pixels
from flaxcnn.layers.chunks import by_chunks
from flaxcnn.layers.precision import wide

Size = int | tuple[int, int]
Axis = tuple[int, int, int, int, int]  # axis, window, stride, padding, output size

# Elements of the input whose maxima are found at a time, per device: fit the cache.
ELEMENTS = 2**17


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
    the first maximum of each window, row by row, as in torch; reverse mode only. Raises
    FlaxcnnError if the window does not fit or the padding is more than half of it.
    """
    axes = _axes(x, window, strides, padding, ceil_mode)
    return _max(x, axes, x.shape[1:3])


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
    y = wide(x)
    for axis, k, s, p, out in _axes(x, window, strides, padding, ceil_mode):
        margin = p if count_include_pad else 0
        start = np.arange(out) * s - p
        stop = np.minimum(start + k, x.shape[axis] + margin)
        count = stop - np.maximum(start, -margin)
        total = reduce(jnp.add, _taps(y, [(axis, k, s, p, out)], 0))
        y = total / jnp.asarray(count, y.dtype).reshape((-1, *[1] * (3 - axis)))
    return y.astype(x.dtype)


def adaptive_avg_pool(x: Array, size: tuple[int, int]) -> Array:
    """Mean over windows that make the output `size`, [N, H, W, C] to [N, *size, C].

    torch's AdaptiveAvgPool2d: window i of n covers floor(i H / n) to
    ceil((i + 1) H / n); what is smaller than `size` is repeated. Accumulates in float32
    or better.
    """
    y = wide(x)
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

    Accumulates in float32 or better. As a product: XLA for CPU gives sums to YNNPACK,
    and the convolutions before them with them, which is slower.
    """
    y = wide(x)
    weights = jnp.full(x.shape[1:3], 1 / (x.shape[1] * x.shape[2]), y.dtype)
    y = jnp.einsum("nhwc,hw->nc", y, weights, precision="highest")
    return y.astype(x.dtype)


def p_norm_pool(
    x: Array, p: float, window: Size, strides: Size | None = None, padding: Size = 0
) -> Array:
    """(sum |x|^p)^(1/p) over windows, [N, H, W, C] to [N, H', W', C].

    All-CNN, arXiv:1412.6806, equation 1; other arguments as in `max_pool`. Tends to
    max pooling of |x| as p grows. Any finite p >= 1 is safe: the window's maximum is
    factored out, and an all-zero window has gradient zero. Raises FlaxcnnError for
    others.
    """
    if not 1 <= p < np.inf:
        raise FlaxcnnError(f"p_norm_pool has p = {p}; use a finite p of 1 or more")
    x = jnp.abs(x)
    for axis in _axes(x, window, strides, padding, False):
        taps = _taps(x, [axis], 0)
        # The norm does not depend on the factor taken out: neither does its gradient.
        peak = lax.stop_gradient(reduce(jnp.maximum, taps))
        zero = peak == 0
        safe = jnp.where(zero, 1, peak)
        total = sum((tap / safe) ** p for tap in taps)
        x = peak * jnp.where(zero, 1, total) ** (1 / p)
    return x


def _axes(
    x: Array, window: Size, strides: Size | None, padding: Size, ceil_mode: bool
) -> tuple[Axis, Axis]:
    """Of H and W."""
    if x.ndim != 4:
        raise FlaxcnnError(
            f"pooling input has shape {x.shape}; reshape it to [N, H, W, C]"
        )
    strides = window if strides is None else strides
    axes = []
    for axis in (1, 2):
        k, s, p = (
            v if isinstance(v, int | np.integer) else v[axis - 1]
            for v in (window, strides, padding)
        )
        if p > k // 2:
            raise FlaxcnnError(
                f"pooling padding {p} is more than half the window {k}; use less"
            )
        size = conv_output_size(x.shape[axis], k, s, p, ceil_mode=ceil_mode)
        axes.append((axis, k, s, p, size))
    return axes[0], axes[1]


def _taps(x: Array, axes: Sequence[Axis], fill: float) -> list[Array]:
    """What each place of the window sees, row by row, over all windows along the axes.

    Each is padded by itself: XLA would write a padded input to memory.
    """
    taps = []
    for place in np.ndindex(*(k for _, k, _, _, _ in axes)):
        index, pads = [slice(None)] * x.ndim, [(0, 0, 0)] * x.ndim
        for i, (axis, _, s, p, out) in zip(place, axes, strict=True):
            index[axis], windows = seen_pixels(i, x.shape[axis], out, s, p)
            pads[axis] = (windows.start, out - windows.stop, 0)
        taps.append(lax.pad(x[tuple(index)], jnp.asarray(fill, x.dtype), pads))
    return taps


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _max(x: Array, axes: tuple[Axis, Axis], size: tuple[int, int]) -> Array:
    return reduce(jnp.maximum, _taps(x, axes, -np.inf))


def _max_fwd(
    x: Array, axes: tuple[Axis, Axis], size: tuple[int, int]
) -> tuple[Array, Array]:
    """The maxima, and their places for the gradient.

    XLA for CPU finds the places again wherever the gradient needs one. That is often if
    windows overlap; then a loop, which it leaves alone, is faster.
    """
    find = partial(_find, axes=axes)
    if all(k <= s for _, k, s, _, _ in axes):
        return find(x)
    least = -(-ELEMENTS // int(np.prod(x.shape[1:])))
    looped = partial(by_chunks, find, least=least)
    return lax.platform_dependent(x, cpu=looped, default=find)


def _find(x: Array, axes: tuple[Axis, Axis]) -> tuple[Array, Array]:
    """The maxima and the place in the window of each first one, both [N, H', W', C]."""
    # Padded as a whole: few samples stay in the cache, comparisons are cheaper so.
    pads = [(p, (out - 1) * s + k - p - x.shape[at], 0) for at, k, s, p, out in axes]
    x = lax.pad(x, jnp.asarray(-np.inf, x.dtype), [(0, 0, 0), *pads, (0, 0, 0)])
    inside = [(at, k, s, 0, out) for at, k, s, _, out in axes]
    best, *rest = _taps(x, inside, -np.inf)
    place = jnp.zeros(best.shape, np.min_scalar_type(len(rest) + 1))
    for i, tap in enumerate(rest, 1):
        later = (tap > best) | jnp.isnan(tap)
        place = jnp.where(later, i, place)
        best = jnp.where(later, tap, best)
    return best, place


def _max_bwd(
    axes: tuple[Axis, Axis], size: tuple[int, int], place: Array, g: Array
) -> tuple[Array]:
    """A pixel's gradient is the sum of those of the windows whose maximum it is.

    Pixel m s + r of the padded input has place r + t s in window m - t: for each t at
    once all m and r, as [N, m, r, m, r, C].
    """
    (_, kh, sh, ph, _), (_, kw, sw, pw, _) = axes
    counts = [-(-(n + p) // s) for n, (_, _, s, p, _) in zip(size, axes, strict=True)]
    total = []
    for shift in np.ndindex(-(-kh // sh), -(-kw // sw)):
        i, j = (np.arange(s) + t * s for t, s in zip(shift, (sh, sw), strict=True))
        i, j = i[:, None, None, None], j[:, None]
        here = np.where((i < kh) & (j < kw), i * kw + j, kh * kw)  # the last: nowhere
        pads = [(0, 0, 0)] * 4
        for axis, t, count in zip((1, 2), shift, counts, strict=True):
            pads[axis] = (t, count - t - g.shape[axis], 0)
        there, given = (
            lax.pad(a, jnp.zeros((), a.dtype), pads)[:, :, None, :, None]
            for a in (place, g)
        )
        total.append(jnp.where(there == jnp.asarray(here, there.dtype), given, 0))
    dx = reduce(jnp.add, total)
    dx = dx.reshape(len(g), counts[0] * sh, counts[1] * sw, g.shape[-1])
    return (dx[:, ph : ph + size[0], pw : pw + size[1]],)


_max.defvjp(_max_fwd, _max_bwd)
