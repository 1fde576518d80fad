"""Transfer learning: which layers are trained, and what becomes of the others.

A layer is a convolution or a fully connected layer, with the normalisations that are
called between it and the next. The head is what depends on the number of classes.
"""

import functools
import re
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from flaxcnn.errors import FlaxcnnError
from flaxcnn.layers import BatchNorm, Dropout, EvoNorm, SpatialDropout
from flaxcnn.structure import Shape, head_parameters, module_calls, module_path

NORMS = (BatchNorm, EvoNorm)
DROPOUTS = (Dropout, SpatialDropout)


def parameter_mask(words: str, model: nn.Module, image_shape: Shape) -> str:
    """The regular expression, over whole paths, of the parameters that are meant.

    Args:
      words: "head", "last:3" (layers), "all", or that expression itself.
      model: the network.
      image_shape: of its input, [H, W, C].

    Raises:
      FlaxcnnError: there are not that many layers.
    """
    if words == "all":
        return ".*"
    if words == "head":
        return any_of(head_parameters(model, image_shape))
    match = re.fullmatch(r"last:([1-9]\d*)", words)
    if not match:
        return words
    layers: list[list[str]] = []
    for call in module_calls(model, image_shape):
        if call.is_layer or (call.params and not layers):
            layers.append([])
        if call.params:
            layers[-1] += call.params
    count = int(match[1])
    if count > len(layers):
        raise FlaxcnnError(
            f"{words!r}: the model has {len(layers)} layers; say last:{len(layers)}, "
            "or all"
        )
    return any_of(path for layer in layers[-count:] for path in layer)


def any_of(paths: Iterable[str]) -> str:
    """The regular expression of some paths."""
    return "|".join(map(re.escape, paths))


class FrozenTrunk:
    """A network whose frozen layers run as in evaluation, whatever `train` says.

    Normalisations without a trained parameter use stored statistics, and leave them as
    they are; a dropout is on only if the layer after it is trained.

    Args:
      model: the network.
      image_shape: of its input, [H, W, C].
      trained: the parameters that are, a regular expression over whole paths.
    """

    def __init__(self, model: nn.Module, image_shape: Shape, trained: str):
        if getattr(model, "scan_blocks", False):
            raise FlaxcnnError(
                "layers of a stage that scan_blocks fuses cannot be frozen one by one; "
                "set config.model.scan_blocks=false"
            )
        self.model = model
        self.fixed = set()
        frozen = True  # is the next layer? (from the last one to the first)
        for call in reversed(module_calls(model, image_shape)):
            is_frozen = not any(re.fullmatch(trained, path) for path in call.params)
            if call.is_layer:
                frozen = is_frozen
            if issubclass(call.kind, DROPOUTS) and frozen:
                self.fixed.add(call.path)
            if issubclass(call.kind, NORMS) and is_frozen:
                self.fixed.add(call.path)

    def apply(self, variables: Any, x: Any, **kwargs: Any) -> Any:
        """As the module's own."""
        with nn.intercept_methods(self._evaluate):
            return self.model.apply(variables, x, **kwargs)

    def _evaluate(
        self, call: Callable, args: tuple, kwargs: dict,
        context: nn.module.InterceptorContext,
    ) -> Any:  # fmt: skip
        if context.method_name == "__call__" and module_path(context) in self.fixed:
            kwargs = {**kwargs, "train": False}
        return call(*args, **kwargs)


class CachedTrunk:
    """The head of a network, trained on features that the trunk gave once.

    `apply` takes features where the network takes images: it puts them in place of the
    head's input. What would have computed that is dead code for the compiler.

    Args:
      model: the network.
      image_shape: of its input, [H, W, C].
    """

    def __init__(self, model: nn.Module, image_shape: Shape):
        head = head_parameters(model, image_shape)
        order = [
            call
            for call in module_calls(model, image_shape)
            if call.params or issubclass(call.kind, DROPOUTS)
        ]
        heads = [i for i, call in enumerate(order) if set(call.params) & set(head)]
        if len(heads) != 1:
            raise FlaxcnnError(
                f"config.transfer.cache_features: the model has {len(heads)} heads; it "
                "needs one, set config.model.aux_logits=false"
            )
        (first,) = heads
        while first and issubclass(order[first - 1].kind, DROPOUTS):
            first -= 1
        self.trunk = FrozenTrunk(model, image_shape, any_of(head))
        self.cut, self.image_shape = order[first].path, image_shape

    def features(self, variables: Any, images: jax.Array) -> jax.Array:
        """The head's input [N, ...] for images [N, H, W, C], as in evaluation."""
        found = []

        def record(args: tuple) -> tuple:
            found.append(args[0])
            return args

        with nn.intercept_methods(functools.partial(self._at_cut, record)):
            self.trunk.apply(variables, images, train=False)
        return found[0]

    def apply(self, variables: Any, features: jax.Array, **kwargs: Any) -> Any:
        """As the module's own, of features instead of images."""

        def replace(args: tuple) -> tuple:
            return (features, *args[1:])

        images = jnp.zeros((len(features), *self.image_shape))
        with nn.intercept_methods(functools.partial(self._at_cut, replace)):
            return self.trunk.apply(variables, images, **kwargs)

    def _at_cut(
        self, change: Callable[[tuple], tuple], call: Callable, args: tuple,
        kwargs: dict, context: nn.module.InterceptorContext,
    ) -> Any:  # fmt: skip
        if context.method_name == "__call__" and module_path(context) == self.cut:
            args = change(args)
        return call(*args, **kwargs)
