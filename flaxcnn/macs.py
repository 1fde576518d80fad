"""The number of multiply-adds of a model."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from flaxcnn.layers import Conv, MapDense


def count_macs(model: nn.Module, input_size: tuple[int, int, int]) -> int:
    """Multiply-adds of one image's forward pass, without computing it.

    Counts convolutions and fully connected layers, as torchvision's `_ops` and the
    papers do; biases, normalisations, activations and pooling are left out.

    Args:
      model: the network.
      input_size: (height, width, channels).
    """
    macs = 0

    def count(
        call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext
    ) -> Any:
        nonlocal macs
        y = call(*args, **kwargs)
        if isinstance(context.module, (Conv, MapDense, nn.Dense)):
            params = context.module.variables["params"]
            (kernel,) = (p for name, p in params.items() if name.endswith("kernel"))
            macs += y.size * math.prod(kernel.shape[:-1])
        return y

    x = jnp.zeros((1, *input_size))
    with nn.intercept_methods(count):
        jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))
    return macs
