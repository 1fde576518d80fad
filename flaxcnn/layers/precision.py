"""In which dtype layers compute."""

import jax.numpy as jnp
from jax import Array


def wide(x: Array) -> Array:
    """x in float32 or better, for sums; on CPU bfloat16 is emulated, and slow."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
