"""The training state."""

import functools
import re
from typing import Any

import jax
import optax
from flax import linen as nn
from flax import struct
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.interpreters.partial_eval import dce_jaxpr_consts

PyTree = Any


class TrainState(struct.PyTreeNode):
    """Everything that a step changes.

    Random numbers are not part of it: those of step t follow from (seed, t).

    Attributes:
      step: number of steps done, a scalar int32.
      variables: {"params": ..., "batch_stats": ...}, float32.
      opt_state: of the optax transformation, for the parameters that are trained.
      ema: running average of `variables`, or None.
    """

    step: jax.Array
    variables: dict[str, PyTree]
    opt_state: PyTree
    ema: dict[str, PyTree] | None

    @property
    def eval_variables(self) -> dict[str, PyTree]:
        """What evaluation and the saved model use: the average if there is one."""
        return self.variables if self.ema is None else self.ema


def init_state(
    model: nn.Module,
    tx: optax.GradientTransformation,
    sample: jax.Array,
    seed: int,
    ema: bool,
    trained: str = ".*",
    loaded: dict[str, PyTree] | None = None,
) -> TrainState:
    """A fresh state; what is not loaded follows from the seed alone.

    Args:
      model: the network.
      tx: the optimizer.
      sample: an input batch [N, H, W, C]; its values are not used.
      seed: of the initialization.
      ema: keep an average.
      trained: the parameters that are, see `split_params`.
      loaded: variables that replace the fresh ones, all or some.
    """

    def make(variables: dict[str, PyTree]) -> TrainState:
        return TrainState(
            step=jax.numpy.zeros((), jax.numpy.int32),
            variables=dict(variables),
            opt_state=tx.init(split_params(variables["params"], trained)[0]),
            ema=jax.tree.map(jax.numpy.copy, variables) if ema else None,
        )

    variables = init_variables(model, jax.random.key(seed), sample)
    return jax.jit(make)(merge(variables, loaded or {}))


def init_variables(
    model: nn.Module, key: jax.Array, sample: jax.Array | jax.ShapeDtypeStruct
) -> dict[str, PyTree]:
    """What `model.init(key, sample, train=False)` gives, without computing outputs.

    An operation at a time: the many layers of a network have few shapes, and compiling
    the whole takes twice as long for ResNet-152, for ResNet-1202 minutes. (flax's
    `lazy_init` also compiles a program for most operations of the forward pass.)
    """
    spec = jax.ShapeDtypeStruct(sample.shape, sample.dtype)
    init = functools.partial(model.init, train=False)
    traced, shapes = jax.make_jaxpr(init, return_shape=True)(key, spec)
    outputs = [True] * len(traced.jaxpr.outvars)
    needed, constants, _ = dce_jaxpr_consts(traced.jaxpr, outputs)
    consts = [x for x, used in zip(traced.consts, constants, strict=True) if used]
    leaves = jax.core.eval_jaxpr(needed, consts, key)
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


def split_params(params: PyTree, trained: str) -> tuple[PyTree, PyTree]:
    """(trained, frozen) parameters: nested dicts with a part of the leaves each.

    Args:
      params: nested dicts.
      trained: a regular expression; trained are the parameters whose whole path, as
        "conv1/kernel", it matches.
    """
    chosen: dict[str, jax.Array] = {}
    others: dict[str, jax.Array] = {}
    for path, x in flatten_dict(params, sep="/").items():
        (chosen if re.fullmatch(trained, path) else others)[path] = x
    return unflatten_dict(chosen, sep="/"), unflatten_dict(others, sep="/")


def merge(tree: PyTree, other: PyTree) -> PyTree:
    """The leaves of both nested dicts; where both have one, the other's."""
    return unflatten_dict({**flatten_dict(tree), **flatten_dict(other)})
