"""Convolutions and their gradients in the forms for which XLA has fast code on CPU.

That is one form: a stride-1 convolution of an NHWC input with an HWIO kernel, or matrix
products, of which a 3x3 kernel needs less than half by `winograd`. The stock gradients
are none of them: XLA rewrites them at the top level of a program, and runs a naive loop
inside `lax.scan` (jax#12868).
"""

from collections.abc import Sequence
from functools import reduce

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from flaxcnn.layers import winograd
from flaxcnn.layers.arithmetic import seen_pixels
from flaxcnn.layers.chunks import chunked, chunks, spread_over
from flaxcnn.layers.precision import wide
from flaxcnn.layers.winograd import Pair

Pads = tuple[Pair, Pair]

LAYOUT = ("NHWC", "HWIO", "NHWC")
POINTWISE = (1, 1, 1, 1, (0, 0), (0, 0))  # window, strides, padding
# Positions of the input that the kernel gradient takes at a time, per device: they fit
# the cache.
POSITIONS = 8192


def forward(x: Array, kernel: Array, strides: Pair, padding: Sequence[Pair]) -> Array:
    """[N, H, W, C] by [kh, kw, C, F]: [N, H', W', F].

    Without the elements of the kernel that see nothing but padding, as on a map of one
    pixel; a 1x1 convolution is a matrix product. XLA has no fast code for a kernel that
    is larger than the map: then the map is padded first.
    """
    pads = list(padding)
    for axis, (k, size, s, (low, high)) in enumerate(
        zip(kernel.shape[:2], x.shape[1:3], strides, padding, strict=True)
    ):
        out = (size + low + high - k) // s + 1
        first, last = max(0, low - (out - 1) * s), min(k, size + low)
        if 0 <= first < last and out > 0:
            kernel = lax.slice_in_dim(kernel, first, last, axis=axis)
            pads[axis] = (low - first, high - (k - last))
    if (*kernel.shape[:2], *strides, *pads) == POINTWISE:
        return jnp.tensordot(wide(x), wide(kernel)[0, 0], 1).astype(x.dtype)
    if winograd.pays(x, kernel.shape, strides, pads):
        return winograd.forward(wide(x), wide(kernel), pads).astype(x.dtype)
    if any(k > size for k, size in zip(kernel.shape[:2], x.shape[1:3], strict=True)):
        zero = jnp.zeros((), x.dtype)
        x = lax.pad(x, zero, [(0, 0, 0), *((*p, 0) for p in pads), (0, 0, 0)])
        x = lax.optimization_barrier(x)  # or XLA makes it the convolution's again
        pads = [(0, 0), (0, 0)]
    return lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=LAYOUT)


def input_gradient(
    g: Array, kernel: Array, strides: Pair, padding: Pads, size: Sequence[int]
) -> Array:
    """The gradient [N, H, W, C] of an input of `size` (H, W), from `g` [N, H', W', F].

    The pixels that lie alike between the strides see the same elements of the kernel:
    one convolution with those makes all of them. So no product is with a zero, as it
    is where the output gradient is spread by the strides first.
    """
    dtype, g, kernel = g.dtype, wide(g), wide(kernel).swapaxes(2, 3)
    # Along either axis of the padded input: the first pixel's place between strides,
    # and how many of each kind there are from there on.
    skipped = [low // s for s, (low, _) in zip(strides, padding, strict=True)]
    counts = [
        -(-(n + low) // s) - skip
        for n, (low, _), s, skip in zip(size, padding, strides, skipped, strict=True)
    ]
    rows = []
    for i in range(strides[0]):
        row = []
        for j in range(strides[1]):
            part = kernel[i :: strides[0], j :: strides[1]][::-1, ::-1]
            pads = [
                (k - 1 - skip, skip + n - out)
                for k, skip, n, out in zip(
                    part.shape, skipped, counts, g.shape[1:], strict=False
                )
            ]
            if part.size:
                row.append(forward(g, part, (1, 1), pads))
            else:  # strides beyond the kernel
                row.append(jnp.zeros((len(g), *counts, kernel.shape[3]), g.dtype))
        rows.append(jnp.stack(row, 3))
    dx = jnp.stack(rows, 2)  # [N, H / s, s, W / s, s, C]
    pixels = (n * s for n, s in zip(counts, strides, strict=True))
    dx = dx.reshape(len(g), *pixels, kernel.shape[3])
    top, left = (low % s for (low, _), s in zip(padding, strides, strict=True))
    return dx[:, top : top + size[0], left : left + size[1]].astype(dtype)


def kernel_gradient(
    g: Array, x: Array, strides: Pair, padding: Pads, window: Sequence[int]
) -> Array:
    """The gradient [kh, kw, C, F] of the kernel, from `g` [N, H', W', F] and input x.

    It is a convolution too: of the input, its channels as samples and its samples as
    channels, with `g` as the kernel. A few samples at a time: turned in the cache. Of a
    1x1 kernel it is a matrix product.
    """
    n, height, width = x.shape[:3]
    least = -(-POSITIONS // (height * width))
    if (*window, *strides, *padding) == POINTWISE:
        parts = chunks(n, least) * spread_over(n)  # each device's own
        rows = (wide(a).reshape(parts, -1, a.shape[-1]) for a in (x, g))
        return jnp.einsum("npc,npf->ncf", *rows).sum(0)[None, None].astype(x.dtype)
    if winograd.pays(x, (*window, x.shape[-1], g.shape[-1]), strides, padding):
        return winograd.kernel_gradient(wide(g), wide(x), padding).astype(x.dtype)
    x, g = chunked(x, least), chunked(g, least)

    def part(i: Array | int) -> Array:
        xs, gs = (wide(lax.dynamic_index_in_dim(a, i, 1, False)) for a in (x, g))
        return _turned(xs, gs.transpose(1, 2, 0, 3), strides, padding, window)

    parts = x.shape[1]
    if parts == 1:
        total = part(0)
    else:
        zeros = jnp.zeros((x.shape[-1], *window, g.shape[-1]), wide(x[:0]).dtype)
        total = lax.fori_loop(0, parts, lambda i, sum_: sum_ + part(i), zeros)
    return total.transpose(1, 2, 0, 3).astype(x.dtype)


def _turned(
    x: Array, g: Array, strides: Pair, padding: Pads, window: Sequence[int]
) -> Array:
    """The kernel gradient [C, kh, kw, F] for x [N, H, W, C] and g [H', W', N, F].

    Elements of the kernel that are strides apart see the same pixels: a convolution
    without strides for each kind.
    """
    zero = jnp.zeros((), x.dtype)
    x = lax.pad(x, zero, [(0, 0, 0), *((*p, 0) for p in padding), (0, 0, 0)])
    x = x.transpose(3, 1, 2, 0)
    total = jnp.zeros((len(x), *window, g.shape[-1]), x.dtype)
    for i, j in np.ndindex(*(min(s, k) for s, k in zip(strides, window, strict=True))):
        places, pixels = [], []
        for at, s, k, out in zip((i, j), strides, window, g.shape, strict=False):
            count = len(range(at, k, s))
            places.append((at, k - at - (count - 1) * s - 1, s - 1))
            pixels.append(slice(at, at + (out + count - 2) * s + 1, s))
        one = forward(x[:, *pixels], g, (1, 1), ((0, 0), (0, 0)))
        total += lax.pad(one, zero, [(0, 0, 0), *places, (0, 0, 0)])
    return total


def depthwise(
    x: Array, kernel: Array, strides: Pair, padding: Pads, dilation: Pair
) -> Array:
    """[N, H, W, C] by [kh, kw, 1, C], each channel alone: [N, H', W', C].

    A sum over the kernel's elements of shifted inputs: one pass through memory.
    """
    taps = _taps(wide(x), kernel.shape, strides, padding, dilation)
    products = (tap * wide(kernel)[i, j, 0] for (i, j), tap in taps.items())
    return reduce(jnp.add, products).astype(x.dtype)


def depthwise_kernel_gradient(
    g: Array,
    x: Array,
    window: Sequence[int],
    strides: Pair,
    padding: Pads,
    dilation: Pair,
) -> Array:
    """The gradient [kh, kw, 1, C] of the kernel of `depthwise`, given `g` and x.

    The products are summed over samples first, one of each device after another: they
    stay in the cache, and one sum over positions is left, for which XLA has no fast
    code.
    """
    places = []  # what each element of the kernel sees of x, and the windows of that
    for at in np.ndindex(*window[:2]):
        (rows, row_windows), (columns, column_windows) = (
            seen_pixels(at[k] * dilation[k], size, out, strides[k], padding[k][0])
            for k, (size, out) in enumerate(
                zip(x.shape[1:3], g.shape[1:3], strict=True)
            )
        )
        places.append(((rows, columns), (row_windows, column_windows)))

    x, g = chunked(x, 1), chunked(g, 1)

    def add(i: Array, totals: list[Array]) -> list[Array]:
        xs, gs = (wide(lax.dynamic_index_in_dim(a, i, 1, False)) for a in (x, g))
        products = (xs[:, *seen] * gs[:, *windows] for seen, windows in places)
        return [t + product for t, product in zip(totals, products, strict=True)]

    zeros = [jnp.zeros_like(wide(x[:, 0])[:, *seen]) for seen, _ in places]
    sums = [t.sum((0, 1, 2)) for t in lax.fori_loop(0, x.shape[1], add, zeros)]
    return jnp.stack(sums).reshape(*window[:2], 1, -1).astype(x.dtype)


def _taps(
    x: Array, window: Sequence[int], strides: Pair, padding: Pads, dilation: Pair
) -> dict[Pair, Array]:
    """What each element of the window sees of x, over all positions of the window."""
    zero = jnp.zeros((), x.dtype)
    x = lax.pad(x, zero, [(0, 0, 0), *((*p, 0) for p in padding), (0, 0, 0)])
    taps = {}
    for at in np.ndindex(*window[:2]):
        rows, columns = (
            slice(i * d, n - (k - 1 - i) * d, s)
            for i, d, n, k, s in zip(
                at, dilation, x.shape[1:], window, strides, strict=False
            )
        )
        taps[at] = x[:, rows, columns]
    return taps
