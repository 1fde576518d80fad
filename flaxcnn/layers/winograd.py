"""Convolutions by 3x3 kernels with 16 products in place of 36, for CPU.

Lavin and Gray 2015, arXiv:1509.09308, section 4.1, F(2x2, 3x3): a tile of 2x2 outputs
is A^T [(G k G^T) * (B^T x B)] A, where x is the 4x4 pixels that it sees. Summed over
channels, the 16 products of all tiles are 16 matrix products. In float32 it is as close
to float64 as direct convolution is; with larger tiles it would not be.
"""

from collections.abc import Iterable, Sequence
from functools import reduce

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from flaxcnn.layers.chunks import by_chunks, chunked

Pair = tuple[int, int]

B_T = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], "f")
G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], "f")
A_T = np.array([[1, 1, 1, 0], [0, 1, -1, -1]], "f")

# Pixels of the output that are computed at a time, per device: they fit the cache.
PIXELS = 4096
# Below these the transformations cost more than the products that they save.
LEAST_PIXELS = 1536
LEAST_CHANNELS = 64


def pays(
    x: Array, kernel: Sequence[int], strides: Pair, padding: Sequence[Pair]
) -> bool:
    """Whether it is the faster way for x [N, H, W, C] and a kernel of that shape."""
    if (*kernel[:2], *strides) != (3, 3, 1, 1):
        return False
    pixels = len(x) * int(np.prod(_size(x, padding)))
    return pixels >= LEAST_PIXELS and min(kernel[2:]) >= LEAST_CHANNELS


def forward(x: Array, kernel: Array, padding: Sequence[Pair]) -> Array:
    """[N, H, W, C] by [3, 3, C, F], stride 1: [N, H', W', F]."""
    size = height, width = _size(x, padding)
    even = [n + n % 2 for n in size]
    factors = [_mix(G, row) for row in _mix(G, kernel)]

    def part(x: Array) -> Array:
        products = [
            [tile @ factor for tile, factor in zip(*rows, strict=True)]
            for rows in zip(_tiles(x, padding, B_T), factors, strict=True)
        ]
        columns = [_mix(A_T, column) for column in zip(*products, strict=True)]
        rows = zip(*columns, strict=True)
        y = jnp.stack([jnp.stack(_mix(A_T, row), 3) for row in rows], 2)
        return y.reshape(len(x), *even, -1)

    return by_chunks(part, x, _least(size))[:, :height, :width]


def kernel_gradient(g: Array, x: Array, padding: Sequence[Pair]) -> Array:
    """The gradient [3, 3, C, F] of the kernel, from `g` [N, H', W', F] and input x."""

    def add(i: Array, total: Array) -> Array:
        xs, gs = (lax.dynamic_index_in_dim(a, i, 1, False) for a in (x, g))
        none = ((0, 0), (0, 0))
        rows = zip(_tiles(xs, padding, B_T), _tiles(gs, none, A_T.T), strict=True)
        sums = [[_flat(a).T @ _flat(b) for a, b in zip(*r, strict=True)] for r in rows]
        return total + jnp.stack([jnp.stack(row) for row in sums])

    size = g.shape[1:3]
    x, g = chunked(x, _least(size)), chunked(g, _least(size))
    total = jnp.zeros((4, 4, x.shape[-1], g.shape[-1]), x.dtype)
    total = lax.fori_loop(0, x.shape[1], add, total)
    rows = [jnp.stack(_mix(G.T, row)) for row in _mix(G.T, total)]
    return jnp.stack(rows)


def _least(size: Sequence[int]) -> int:
    """Samples of a chunk, per device, for an output of that size."""
    return -(-PIXELS // (size[0] * size[1]))


def _size(x: Array, padding: Sequence[Pair]) -> tuple[int, int]:
    """Of the output: height and width."""
    height, width = (n + sum(p) - 2 for n, p in zip(x.shape[1:3], padding, strict=True))
    return height, width


def _tiles(x: Array, padding: Sequence[Pair], matrix: np.ndarray) -> list[list[Array]]:
    """`matrix` d `matrix`^T of the tiles d of x [n, H, W, C], two pixels apart.

    An element of all the tiles is [n, h, w, C]. Beyond its padding x is padded to a
    whole number of them.
    """
    pads = [
        (low, high + (n + low + high) % 2, 0)
        for n, (low, high) in zip(x.shape[1:3], padding, strict=True)
    ]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *pads, (0, 0, 0)])

    def along(x: Array, axis: int) -> list[Array]:
        count = matrix.shape[1]
        end = x.shape[axis] - count + 1
        parts = (lax.slice_in_dim(x, i, i + end, 2, axis) for i in range(count))
        return _mix(matrix, parts)

    return [along(row, 2) for row in along(x, 1)]


def _mix(matrix: np.ndarray, parts: Iterable[Array]) -> list[Array]:
    """Their sums with the coefficients of each row."""
    parts = list(parts)
    return [
        reduce(jnp.add, (float(c) * p for c, p in zip(row, parts, strict=True) if c))
        for row in matrix
    ]


def _flat(x: Array) -> Array:
    """[n, h, w, C] as [n * h * w, C]."""
    return x.reshape(-1, x.shape[-1])
