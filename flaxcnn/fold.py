"""Inference without BatchNorm: folded into the layers before it."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.errors import (
    ScopeCollectionNotFound,
    ScopeParamNotFoundError,
    ScopeParamShapeError,
)
from flax.traverse_util import flatten_dict, unflatten_dict

from flaxcnn.errors import FlaxcnnError
from flaxcnn.layers import BatchNorm, Conv, MapDense

LAYERS = (Conv, MapDense, nn.Conv, nn.Dense)

# What flax raises for variables of another model.
MISFITS = (ScopeCollectionNotFound, ScopeParamNotFoundError, ScopeParamShapeError)

Path = tuple[str, ...]


def fold_batchnorm(
    model: nn.Module,
    variables: dict[str, Any],
    image_shape: tuple[int, int, int] = (224, 224, 3),
) -> dict[str, Any]:
    """Variables for inference, in which the layers do what BatchNorm did after them.

    With stored statistics BatchNorm is affine per channel, and so is part of the
    convolution (or fully connected layer) whose output it takes: y * f + b, where
    f = scale / sqrt(var + epsilon). The layer's parameters are multiplied by f, and the
    BatchNorm only adds b, its `folded_bias`. It stays as it is if it follows no such
    layer (the first of DenseNet's two in a layer), if the layer's output goes elsewhere
    too, or if `train=False` does not call it. The same model takes the result, with
    `train=False` only.

    Args:
      model: the network.
      variables: {"params": ..., "batch_stats": ...}.
      image_shape: of an input, [H, W, C]; of any size that the network takes.

    Returns:
      New variables; those given are left alone.

    Raises:
      FlaxcnnError: the variables are not those of the model for such images.
    """
    flat = flatten_dict(variables)
    for layer, (norm, epsilon) in _pairs(model, flat, image_shape).items():
        stats, params = ("batch_stats", *norm), ("params", *norm)
        mean, var = flat.pop((*stats, "mean")), flat.pop((*stats, "var"))
        factor = jax.lax.rsqrt(jnp.asarray(var) + epsilon)
        factor *= flat.pop((*params, "scale"), 1.0)
        flat[(*params, "folded_bias")] = flat.pop((*params, "bias"), 0) - mean * factor
        for path in [path for path in flat if path[:-1] == ("params", *layer)]:
            flat[path] = flat[path] * factor
    return unflatten_dict(flat)


def _pairs(
    model: nn.Module, flat: dict[Path, Any], image_shape: tuple[int, int, int]
) -> dict[Path, tuple[Path, float]]:
    """For each layer that can be folded into: its BatchNorm, and that one's epsilon."""
    if getattr(model, "scan_blocks", False):  # a loop is traced once
        model = model.clone(scan_blocks=False)
    made: dict[int, tuple[Path, Any]] = {}
    pairs: dict[Path, tuple[Path, float]] = {}
    calls: Counter[Path] = Counter()

    def record(
        call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext
    ) -> Any:
        module, y = context.module, call(*args, **kwargs)
        if context.method_name != "__call__":
            return y
        calls[module.path] += 1
        if isinstance(module, LAYERS):
            made[id(y)] = module.path, y  # kept, so that no other takes its id
        if isinstance(module, BatchNorm) and args and id(args[0]) in made:
            layer, _ = made[id(args[0])]
            if module.has_variable("batch_stats", "mean") and layer not in pairs:
                pairs[layer] = module.path, module.epsilon
                return jnp.zeros_like(y)  # here the layer's output ends
        return y

    def forward(x: Any, *leaves: Any) -> Any:
        variables = unflatten_dict(dict(zip(flat, leaves, strict=True)))
        with nn.intercept_methods(record):
            y = model.apply(variables, x, train=False)
        return y, [y for layer, y in made.values() if layer in pairs]

    x = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    try:
        jaxpr = jax.make_jaxpr(forward)(x, *flat.values()).jaxpr
    except MISFITS as error:
        raise FlaxcnnError(
            "fold_batchnorm: the variables are not those of this "
            f"{type(model).__name__} for images of {image_shape}; give its own, or the "
            "right image_shape"
        ) from error
    reached = _reached(jaxpr, [(), *(path[1:-1] for path in flat)])
    return {  # a layer has to reach its own output and no other
        layer: (norm, epsilon)
        for layer, (norm, epsilon) in pairs.items()
        if calls[layer] == calls[norm] == reached[layer] == 1
    }


def _reached(jaxpr: Any, modules: list[Path]) -> Counter[Path]:
    """How many outputs of a jaxpr depend on inputs of a module, for each module.

    Args:
      jaxpr: that of a function.
      modules: of its inputs.
    """
    parts = {id(v): {path} for v, path in zip(jaxpr.invars, modules, strict=True)}
    for equation in jaxpr.eqns:
        of_inputs = set().union(*(parts.get(id(v), set()) for v in equation.invars))
        parts.update((id(v), of_inputs) for v in equation.outvars)
    return Counter(path for v in jaxpr.outvars for path in parts.get(id(v), ()))
