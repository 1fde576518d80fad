"""A batch in parts that fit the cache, for CPU.

A part has samples from all over the batch: so each stays spread over the devices.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax


def chunks(n: int, least: int) -> int:
    """The number of equal parts of n samples that have at least so many each."""
    return max(c for c in range(1, n + 1) if n % c == 0 and (c == 1 or n // c >= least))


def chunked(x: Array, least: int) -> Array:
    """[N, ...] as [N / chunks, chunks, ...]."""
    return x.reshape(-1, chunks(len(x), least), *x.shape[1:])


def by_chunks(f: Callable[[Array], Any], x: Array, least: int) -> Any:
    """f(x) for an f of each sample alone, at least so many samples at a time.

    Its result, and that of f, is an array or several.
    """

    def add(i: Array, ys: Any) -> Any:
        parts = f(lax.dynamic_index_in_dim(x, i, 1, False))
        put = partial(lax.dynamic_update_index_in_dim, index=i, axis=1)
        return jax.tree.map(put, ys, parts)

    x = chunked(x, least)
    ys = jax.tree.map(
        lambda part: jnp.zeros((*x.shape[:2], *part.shape[1:]), part.dtype),
        jax.eval_shape(f, x[:, 0]),
    )
    ys = lax.fori_loop(0, x.shape[1], add, ys)
    return jax.tree.map(lambda y: y.reshape(-1, *y.shape[2:]), ys)
