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

    Counts convolutions and fully connected layers (those of flax too), as torchvision's
    `_ops` and the papers do; biases, normalisations, activations and pooling are left
    out.

    Args:
      model: the network.
      input_size: (height, width, channels).
    """
    macs = 0
    if hasattr(model, "scan_blocks"):  # a loop is traced once
        model = model.clone(scan_blocks=False)

    def count(
        call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext
    ) -> Any:
        nonlocal macs
        y = call(*args, **kwargs)
        if isinstance(context.module, (Conv, MapDense, nn.Conv, nn.Dense)):
            params = context.module.variables["params"]
            (kernel,) = (p for name, p in params.items() if name.endswith("kernel"))
            macs += y.size * math.prod(kernel.shape[:-1])
        return y

    def forward() -> Any:
        x = jnp.zeros((1, *input_size))
        variables = model.init(jax.random.key(0), x, train=False)
        with nn.intercept_methods(count):
            return model.apply(variables, x, train=False)

    jax.eval_shape(forward)
    return macs
