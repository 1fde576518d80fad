"""A batch in parts that fit the cache, for CPU.

A part has samples from all over the batch: so each stays spread over the devices.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax


def spread_over(n: int) -> int:
    """How many devices n samples may lie on: all, by `jit`, if they divide n.

    `pmap`'s own part of a batch does not, but it is counted so too.
    """
    devices = jax.device_count()
    return 1 if n % devices else devices


def chunks(n: int, least: int) -> int:
    """The number of equal parts of n samples: with at least so many of each device."""
    own = n // spread_over(n)
    counts = range(2, own + 1)
    return max((c for c in counts if own % c == 0 and own // c >= least), default=1)


def chunked(x: Array, least: int) -> Array:
    """[N, ...] as [N / chunks, chunks, ...]."""
    parts = chunks(len(x), least)
    return x.reshape(len(x) // parts, parts, *x.shape[1:])


def by_chunks(f: Callable[[Array], Any], x: Array, least: int) -> Any:
    """f(x) for an f of each sample alone, at least so many of a device at a time.

    Its result, and that of f, is an array or several.
    """

    def add(i: Array, ys: Any) -> Any:
        parts = f(lax.dynamic_index_in_dim(x, i, 1, False))
        put = partial(lax.dynamic_update_index_in_dim, index=i, axis=1)
        return jax.tree.map(put, ys, parts)

    count, x = len(x), chunked(x, least)
    ys = jax.tree.map(
        lambda part: jnp.zeros((*x.shape[:2], *part.shape[1:]), part.dtype),
        jax.eval_shape(f, x[:, 0]),
    )
    ys = lax.fori_loop(0, x.shape[1], add, ys)
    return jax.tree.map(lambda y: y.reshape(count, *y.shape[2:]), ys)
