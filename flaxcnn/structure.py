"""What a network consists of, found by tracing it: variables, calls, the head.

Nothing is computed. Paths are written "layer1.0/conv1/kernel".
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict

Shape = tuple[int, ...]


class Call(NamedTuple):
    """A module that was called: its path, its class and its own parameters' paths."""

    path: str
    kind: type[nn.Module]
    params: tuple[str, ...]

    @property
    def is_layer(self) -> bool:
        """Is it a convolution or a fully connected layer?"""
        return any(path.endswith("kernel") for path in self.params)


def variable_shapes(model: nn.Module, image_shape: Shape) -> dict[str, Any]:
    """{collection: {...}} of shapes and types, for images [H, W, C]."""
    x = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    init = functools.partial(model.init, train=False)
    return jax.eval_shape(init, jax.random.key(0), x)


def parameter_shapes(model: nn.Module, image_shape: Shape) -> dict[str, Shape]:
    """Shapes of the parameters by path."""
    params = flatten_dict(variable_shapes(model, image_shape)["params"], sep="/")
    return {path: leaf.shape for path, leaf in params.items()}


def head_parameters(model: nn.Module, image_shape: Shape) -> list[str]:
    """The parameters whose shape depends on the number of classes."""
    one, two = (
        parameter_shapes(model.clone(num_classes=classes), image_shape)
        for classes in (1, 2)
    )
    return [path for path, shape in one.items() if two[path] != shape]


def module_calls(model: nn.Module, image_shape: Shape) -> list[Call]:
    """All modules, in the order in which they are called first."""
    kinds: dict[str, type[nn.Module]] = {}

    def record(
        call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext
    ) -> Any:
        if context.method_name == "__call__":
            kinds.setdefault(module_path(context), type(context.module))
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        shapes = parameter_shapes(model, image_shape)
    params: dict[str, list[str]] = {path: [] for path in kinds}
    for path in shapes:
        params[path.rpartition("/")[0]].append(path)
    return [Call(path, kind, tuple(params[path])) for path, kind in kinds.items()]


def module_path(context: nn.module.InterceptorContext) -> str:
    """The path of the module whose method is intercepted."""
    return "/".join(context.module.path)
