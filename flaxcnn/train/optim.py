"""Optimizers and learning rates from `config.optim`."""

import functools
import inspect
import re
from collections.abc import Sequence
from typing import Any

import jax
import optax
import optax.contrib
from ml_collections import ConfigDict

from flaxcnn.errors import FlaxcnnError
from flaxcnn.train.config import Durations, flatten, optimizer_function


def make_schedule(
    optim: ConfigDict, durations: Durations, total: int
) -> optax.Schedule:
    """The learning rate as a function of the step.

    Args:
      optim: `config.optim`.
      durations: converts its durations to steps.
      total: steps of the whole run, where cosine, linear and onecycle end.
    """
    warmup = round(durations.steps(optim.warmup, "config.optim.warmup"))
    if warmup >= total:
        raise FlaxcnnError(
            f"config.optim.warmup={optim.warmup!r} is {warmup} steps, the whole run "
            f"{total}; shorten it"
        )
    after = total - warmup  # schedules count from the end of the warmup
    schedule: optax.Schedule
    match optim.schedule:
        case "step":
            key = "config.optim.milestones"
            milestones = [durations.steps(m, key) - warmup for m in optim.milestones]
            schedule = optax.piecewise_constant_schedule(
                optim.lr, {round(step): optim.gamma for step in milestones}
            )
        case "cosine":
            schedule = optax.cosine_decay_schedule(optim.lr, after)
        case "linear":
            schedule = optax.linear_schedule(optim.lr, 0.0, after)
        case "exponential":
            schedule = optax.exponential_decay(
                optim.lr, float(durations.steps("1 epoch")), optim.gamma
            )
        case "onecycle":
            schedule = optax.cosine_onecycle_schedule(after, optim.lr)
        case _:  # constant; plateau scales the updates instead
            schedule = optax.constant_schedule(optim.lr)
    if not warmup:
        return schedule
    ramp = optax.linear_schedule(0.0, optim.lr, warmup)
    return optax.join_schedules([ramp, schedule], [warmup])


def make_optimizer(
    optim: ConfigDict, durations: Durations, total: int,
    lr_factors: Sequence[tuple[str, float]] = (),
) -> optax.GradientTransformationExtraArgs:  # fmt: skip
    """The optax transformation: clip, decay, optimizer, factors of lr, plateau.

    Weight decay is L2 (added to the gradient, before momentum) unless the optimizer
    has one of its own that takes a mask, as adamw and lion have.
    muon takes every kernel, of convolutions too, as a matrix from inputs to outputs,
    and decays those alone.
    """
    function = optimizer_function(optim.name)
    accepted = inspect.signature(function).parameters
    arguments: dict[str, Any] = {
        key: value
        for key, value in flatten(optim).items()
        if key in accepted and key != "name"
    }
    decays = functools.partial(match_paths, optim.decay_mask)
    mask = {key: decays for key in ("mask", "weight_decay_mask") if key in accepted}
    own = "weight_decay" in accepted and bool(mask) and optim.weight_decay > 0
    if "weight_decay" in accepted and not own:  # nothing, or what would decay all
        arguments["weight_decay"], mask = 0.0, {}
    if optim.name == "muon":  # which by itself leaves convolutions to Adam
        arguments["muon_weight_dimension_numbers"] = kernels_as_matrices
    chain = []
    if optim.clip:
        chain.append(optax.clip_by_global_norm(optim.clip))
    if optim.weight_decay and not own:
        chain.append(optax.add_decayed_weights(optim.weight_decay, decays))
    schedule = make_schedule(optim, durations, total)
    chain.append(function(learning_rate=schedule, **arguments, **mask))
    if lr_factors:
        chain.append(scale_by_path(lr_factors))
    if optim.schedule == "plateau":
        epoch = max(1, round(durations.steps("1 epoch")))
        patience = durations.period(optim.patience, "config.optim.patience") / epoch
        chain.append(
            optax.contrib.reduce_on_plateau(
                optim.gamma, max(1, round(patience)), accumulation_size=epoch
            )
        )
    return optax.with_extra_args_support(optax.chain(*chain))


def kernels_as_matrices(params: Any) -> Any:
    """Of each kernel: its inputs are one axis, its outputs the other. Vectors: None."""

    def matrix(kernel: jax.Array) -> optax.contrib.MuonDimensionNumbers | None:
        *inputs, outputs = range(kernel.ndim)
        return optax.contrib.MuonDimensionNumbers(inputs, outputs) if inputs else None

    return jax.tree.map(matrix, params)


def scale_by_path(factors: Sequence[tuple[str, float]]) -> optax.GradientTransformation:
    """Multiplies updates, and so learning rates, by factors.

    Args:
      factors: pairs of a mask and a factor; a parameter has that of the first mask that
        matches it, else 1.
    """

    def scale(path: str, update: jax.Array) -> jax.Array:
        found = (f for mask, f in factors if re.fullmatch(mask, path))
        return next(found, 1.0) * update

    def update(updates: Any, params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, x: scale(_path(path), x), updates
        )

    return optax.stateless(update)


def match_paths(pattern: str, tree: Any) -> Any:
    """A tree of bools: does the pattern match the whole path "conv1/kernel"?"""
    regex = re.compile(pattern)
    return jax.tree_util.tree_map_with_path(
        lambda path, _: bool(regex.fullmatch(_path(path))), tree
    )


def check_mask(where: str, mask: str, params: Any) -> None:
    """Raises FlaxcnnError for a mask that is no regex or matches no parameter.

    The message begins with `where`, which names the key and its value.
    """
    try:
        found = jax.tree.leaves(match_paths(mask, params))
    except re.error as error:
        raise FlaxcnnError(f"{where} is no regular expression: {error}") from None
    if not any(found):
        paths = [_path(p) for p, _ in jax.tree_util.tree_leaves_with_path(params)]
        raise FlaxcnnError(
            f"{where} matches no parameter; there are {', '.join(paths[:4])}, ..."
        )


def _path(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
