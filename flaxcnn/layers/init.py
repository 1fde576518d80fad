"""Initializers that flax does not have."""

import math

import jax
from flax import linen as nn


def torch_uniform(fan_in: int) -> nn.initializers.Initializer:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)): torch's default for weights and biases.

    Args:
      fan_in: inputs of one output unit, kernel height * kernel width * channels.
    """
    bound = 1 / math.sqrt(fan_in)

    def init(key: jax.Array, shape: tuple, dtype: jax.typing.DTypeLike = float):  # type: ignore[no-untyped-def]
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init
