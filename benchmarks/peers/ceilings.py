"""What the machine can do: operations of a large matrix product, bytes of a copy."""

from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.benchmark import Contender, Setup


def ceiling(setup: Setup) -> Contender:
    """1e12 operations a second of a bfloat16 product, or bytes read plus written."""
    n, keys = setup.bench.batch, jax.random.split(jax.random.key(0))
    function: Any
    if setup.contender == "matmul":
        operands = [jax.random.normal(k, (n, n), jnp.bfloat16) for k in keys]
        work, function = 2 * n**3, jnp.matmul
    else:  # 8.6 GB for n = 8192; never zeros, they are faster
        operands = [jax.random.normal(keys[0], (16 * n, n), jnp.float32)]
        work, function = 2 * operands[0].nbytes, jnp.negative
    program: Any = jax.jit(function)
    result: Any = None

    def step() -> None:
        nonlocal result
        result = program(*operands)

    return Contender(step, lambda: float(result[0, 0]), 0, work / 1e12)
