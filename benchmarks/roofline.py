"""The fewest seconds a training step can take: operations and bytes, layer by layer.

The method of a roofline: a convolution's forward pass and its two gradients (one for
the first layer) take the larger of operations over the peak rate and bytes over the
bandwidth, in bfloat16. BatchNorm reads or writes the convolution's output eight times,
a ReLU without it three times, a residual addition twice. Poolings and the optimizer are
left out, so that it is a little optimistic.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from benchmarks.benchmark import Benchmark
from benchmarks.ours import make_model
from flaxcnn.layers import BatchNorm, Conv, MapDense
from flaxcnn.models.resnet import Block

BYTES = 2  # of a bfloat16


def images_per_second(bench: Benchmark, rate: float, bandwidth: float) -> float:
    """The roofline of a row, for 1e12 operations and bytes a second."""
    seconds, first = 0.0, True
    outputs = normalized = 0  # elements

    def count(
        call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext
    ) -> Any:
        nonlocal seconds, first, outputs, normalized
        y = call(*args, **kwargs)
        if isinstance(context.module, BatchNorm):
            normalized += y.size
        elif isinstance(context.module, Block) and context.method_name == "__call__":
            seconds += 2 * BYTES * y.size / bandwidth / 1e12
        elif isinstance(context.module, (Conv, MapDense, nn.Conv, nn.Dense)):
            params = context.module.variables["params"]
            (kernel,) = (p for name, p in params.items() if name.endswith("kernel"))
            operations = 2 * y.size * math.prod(kernel.shape[:-1])
            moved = BYTES * (args[0].size + kernel.size + y.size)
            passes = 2 if first else 3
            first = False
            outputs += y.size
            seconds += passes * max(operations / rate, moved / bandwidth) / 1e12
        return y

    def forward() -> Any:
        model = make_model(bench)
        x = jnp.zeros((bench.batch, bench.size, bench.size, 3))
        variables = model.init(jax.random.key(0), x, train=False)
        with nn.intercept_methods(count):
            return model.apply(
                variables, x, train=True, mutable=["batch_stats"],
                rngs={"dropout": jax.random.key(1)},
            )  # fmt: skip

    jax.eval_shape(forward)
    elements = 8 * normalized + 3 * max(0, outputs - normalized)
    seconds += BYTES * elements / bandwidth / 1e12
    return bench.batch / seconds
