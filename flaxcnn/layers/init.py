"""Initializers that flax does not have."""

import math

import jax
from flax import linen as nn

# He et al. 2015, arXiv:1502.01852, by the inputs of a unit or by its outputs. As in
# torch the normal distribution is whole; flax's he_normal cuts it at two deviations.
he_normal_fan_in = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
he_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def torch_uniform(fan_in: int) -> nn.initializers.Initializer:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)): torch's default for weights and biases.

    Args:
      fan_in: inputs of one output unit, kernel height * kernel width * channels.
    """
    bound = 1 / math.sqrt(fan_in)

    def init(key: jax.Array, shape: tuple, dtype: jax.typing.DTypeLike = float):  # type: ignore[no-untyped-def]
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init
