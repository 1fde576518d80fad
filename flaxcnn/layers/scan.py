"""Many blocks of one shape, compiled once."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax


def chain_blocks(
    parent: nn.Module,
    block: Callable[..., nn.Module],
    names: Sequence[str],
    x: Array,
    *,
    train: bool,
    scan: bool,
) -> Array:
    """x through submodules `names` of `parent`, each made by `block(name=...)`.

    Call it in `parent`'s compact method. The blocks keep the shape of x, draw no random
    numbers, and have their own variables, under their own names, as if they had been
    called one after another. That is what happens unless `scan`: then their variables
    are stacked and `lax.scan` runs them, so that compilation takes as long as for one.
    """
    if not scan or parent.is_initializing() or len(names) < 2:
        for name in names:
            x = block(name=name)(x, train=train)
        return x

    given = parent.variables
    stacked = {
        collection: jax.tree.map(lambda *a: jnp.stack(a), *(tree[n] for n in names))
        for collection, tree in given.items()
        if names[0] in tree
    }
    updated = [c for c in stacked if parent.is_mutable_collection(c) and c != "params"]
    alone = block(parent=None)

    def body(x: Array, variables: dict) -> Any:
        return alone.apply(variables, x, train=train, mutable=updated)

    x, updates = lax.scan(body, x, stacked)
    for collection, tree in updates.items():
        for i, name in enumerate(names):
            one = jax.tree.map(lambda a, i=i: a[i], tree)
            parent.put_variable(collection, name, one)
    return x
