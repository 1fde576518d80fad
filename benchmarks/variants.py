"""flaxcnn with one of its own rules replaced: what each of them gives on a GPU.

Networks take their layers by name when they are imported. So a rule is replaced before
that, in the contender's own process.
"""

import sys
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

LAYERS = import_module("flaxcnn.layers")
CONV, NORM, POOL = (import_module(f"flaxcnn.layers.{x}") for x in
                    ("conv", "norm", "pool"))  # fmt: skip


@cache
def replace_rule(contender: str) -> None:
    """Makes this process's flaxcnn the one of that name, if it is one of `RULES`."""
    if contender not in RULES:
        return
    imported = [x for x in sys.modules if x.startswith("flaxcnn.models.")]
    assert not imported, f"{imported} have the old rule"
    module, name, make = RULES[contender]
    setattr(module, name, make(getattr(module, name)))


def stock_relu(ours: Callable) -> Callable:
    """Whose gradient looks at its input."""
    return jax.nn.relu


def stock_norm(ours: Callable) -> Callable:
    """BatchNorm derived step by step."""
    undecorated: Callable = ours.fun  # type: ignore[attr-defined]
    return undecorated


def stock_pool(ours: Callable) -> Callable:
    """Max pooling whose gradient is select-and-scatter."""

    def maximum(x: Array, axes: Any, size: Any) -> Array:
        _, windows, strides, lows, outs = zip(*axes, strict=True)
        pads = [
            (low, max(0, (out - 1) * s + k - low - n))
            for n, k, s, low, out in zip(
                size, windows, strides, lows, outs, strict=True
            )
        ]
        return lax.reduce_window(
            x, -jnp.inf, lax.max, (1, *windows, 1), (1, *strides, 1),
            ((0, 0), *pads, (0, 0)),
        )  # fmt: skip

    return maximum


def dot_1x1(ours: Callable) -> Callable:
    """1x1 convolutions as matrix products."""

    def conv(
        x: Array, kernel: Array, strides: Any, padding: Any,
        dilation: Any = (1, 1), groups: int = 1,
    ) -> Array:  # fmt: skip
        if kernel.shape[:2] == (1, 1) and groups == 1 and not any(map(any, padding)):
            x = x[:, :: strides[0], :: strides[1]]
            return jnp.tensordot(x, kernel[0, 0], 1)
        return ours(x, kernel, strides, padding, dilation, groups)

    return conv


def padded_stem(ours: Callable) -> Callable:
    """Convolutions of three channels with five more, of zeros."""

    def conv(x: Array, kernel: Array, *how: Any, **more: Any) -> Array:
        if x.shape[-1] == kernel.shape[2] == 3:
            x = jnp.pad(x, [(0, 0), (0, 0), (0, 0), (0, 5)])
            kernel = jnp.pad(kernel, [(0, 0), (0, 0), (0, 5), (0, 0)])
        return ours(x, kernel, *how, **more)

    return conv


RULES: dict[str, tuple[Any, str, Callable]] = {
    "flaxcnn_stock_relu": (LAYERS, "relu", stock_relu),
    "flaxcnn_stock_norm": (NORM, "_normalise", stock_norm),
    "flaxcnn_stock_pool": (POOL, "_max", stock_pool),
    "flaxcnn_dot_1x1": (CONV, "_stock", dot_1x1),
    "flaxcnn_padded_stem": (CONV, "_stock", padded_stem),
}
