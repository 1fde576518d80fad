"""The pure training and evaluation steps."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from jax import lax

from flaxcnn.train.state import PyTree, TrainState, merge, split_params

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
Inputs = Callable[[Batch, jax.Array], tuple[jax.Array, jax.Array]]


class Network(Protocol):
    """A flax module, or what stands for one: `flaxcnn.transfer.FrozenTrunk`."""

    def apply(self, variables: Any, x: Any, **kwargs: Any) -> Any: ...


def make_train_step(
    model: Network,
    tx: optax.GradientTransformationExtraArgs,
    *,
    num_classes: int,
    seed: int = 0,
    label_smoothing: float = 0.0,
    ema: float = 0.0,
    grad_accum: int = 1,
    augment: Inputs | None = None,
    aux_weights: Mapping[str, float] | None = None,
    trained: str = ".*",
    axis_name: str | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """A pure `train_step(state, batch) -> (state, metrics)`.

    Args:
      model: the network.
      tx: the optimizer.
      num_classes: of the labels.
      seed: step t draws its random numbers from (seed, t).
      label_smoothing: share of the target spread over all classes.
      ema: decay of the averaged variables; 0: off.
      grad_accum: micro-batches, one after another; BatchNorm sees each alone.
      augment: maps a batch and one key a sample to inputs and targets; None:
        `batch["image"]` as it is.
      aux_weights: of the auxiliary heads in the model's endpoints; their weighted
        losses are added to the loss.
      trained: the parameters that are, see `split_params`. The others are constants of
        the loss: what precedes the first trained layer has no backward pass.
      axis_name: of the mapped axis under pmap; None under jit.

    Returns:
      The step. `batch` is {"image": [N, H, W, C], "label": int [N]}; metrics are
      sums over the batch: {"loss", "correct", "count"}.
    """
    augment = augment or functools.partial(plain_inputs, num_classes)

    def mean(tree: PyTree) -> PyTree:
        return lax.pmean(tree, axis_name) if axis_name else tree

    def loss_and_updates(
        params: PyTree, frozen: PyTree, others: PyTree, images: jax.Array,
        targets: jax.Array, key: jax.Array,
    ) -> tuple[jax.Array, tuple[PyTree, jax.Array]]:  # fmt: skip
        variables = {"params": merge(params, frozen), **others}
        (logits, ends), updates = model.apply(
            variables, images, train=True, endpoints=True, mutable=list(others),
            rngs={"dropout": key},
        )  # fmt: skip
        smooth = optax.smooth_labels(targets, label_smoothing)
        loss = optax.softmax_cross_entropy(logits, smooth).mean()
        for head, weight in (aux_weights or {}).items():
            loss += weight * optax.softmax_cross_entropy(ends[head], smooth).mean()
        correct = (logits.argmax(-1) == targets.argmax(-1)).sum()
        return loss, (updates, correct)

    grad = jax.value_and_grad(loss_and_updates, has_aux=True)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        count = batch["label"].shape[0]
        step_key = jax.random.fold_in(jax.random.key(seed), state.step)
        device = lax.axis_index(axis_name) if axis_name else 0
        # A sample's augmentation follows from its place in the whole batch, so
        # that it does not depend on the number of devices.
        sample_key, dropout_key = jax.random.split(step_key)
        places = device * count + jnp.arange(count)
        keys = jax.vmap(functools.partial(jax.random.fold_in, sample_key))(places)
        images, targets = augment(batch, keys)
        if axis_name:
            dropout_key = jax.random.fold_in(dropout_key, device)

        params, frozen = split_params(state.variables["params"], trained)
        others = {k: v for k, v in state.variables.items() if k != "params"}

        def micro_step(carry: PyTree, xs: PyTree) -> tuple[PyTree, None]:
            others, sums = carry
            (loss, (others, correct)), grads = grad(params, frozen, others, *xs)
            return (others, jax.tree.map(jnp.add, sums, (grads, loss, correct))), None

        if grad_accum == 1:
            (loss, (others, correct)), grads = grad(
                params, frozen, others, images, targets, dropout_key
            )
        else:
            split = functools.partial(_split, grad_accum)
            keys = jax.random.split(dropout_key, grad_accum)
            zeros = (jax.tree.map(jnp.zeros_like, params), 0.0, 0)
            (others, (grads, loss, correct)), _ = lax.scan(
                micro_step, (others, zeros), (split(images), split(targets), keys)
            )
            grads, loss = jax.tree.map(lambda x: x / grad_accum, (grads, loss))

        grads, loss, others = mean((grads, loss, others))
        updates, opt_state = tx.update(grads, state.opt_state, params, value=loss)
        params = merge(optax.apply_updates(params, updates), frozen)
        variables = {"params": params, **others}
        average = state.ema and jax.tree.map(  # exact for what does not change
            lambda old, new: old + (1 - ema) * (new - old), state.ema, variables
        )
        state = state.replace(
            step=state.step + 1, variables=variables, opt_state=opt_state, ema=average
        )
        total = count * (lax.axis_size(axis_name) if axis_name else 1)
        correct = lax.psum(correct, axis_name) if axis_name else correct
        return state, _sums(loss * total, correct, total)

    return train_step


def make_eval_step(
    model: Network, num_classes: int, flip: bool = False, axis_name: str | None = None
) -> Callable[[PyTree, Batch], Metrics]:
    """A pure `eval_step(variables, batch) -> metrics`.

    `flip` as of `infer`. `batch["mask"]` is 0 for the samples that only fill up the
    last batch; they count nowhere. Metrics are sums: {"loss", "correct", "count"}.
    """

    def eval_step(variables: PyTree, batch: Batch) -> Metrics:
        logits = infer(model, variables, batch["image"], flip)
        targets = jax.nn.one_hot(batch["label"], num_classes)
        losses = optax.softmax_cross_entropy(logits, targets)
        hits = logits.argmax(-1) == batch["label"]
        mask = batch["mask"]
        sums = _sums((losses * mask).sum(), (hits * mask).sum(), mask.sum())
        return lax.psum(sums, axis_name) if axis_name else sums

    return eval_step


def infer(
    model: Network, variables: PyTree, images: jax.Array, flip: bool = False
) -> jax.Array:
    """Logits [N, classes] of images [N, H, W, C], preprocessed.

    With `flip` they are the mean of those of an image and of its mirror image.
    """
    logits: jax.Array = model.apply(variables, images, train=False)
    if flip:
        logits = (logits + infer(model, variables, images[:, :, ::-1])) / 2
    return logits


def plain_inputs(
    num_classes: int, batch: Batch, keys: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The images as they are, and one-hot targets [N, num_classes]."""
    return batch["image"], jax.nn.one_hot(batch["label"], num_classes)


def repeat(
    step: Callable, gather: Callable[[Any, Any], Batch], whole: bool = False
) -> Callable:
    """`many(state, resident, feeds, count)`: `count` steps in one call.

    Args:
      step: `train_step`, or an evaluation step made to return (state, metrics).
      gather: makes a batch of the resident data and one step's feed.
      whole: runs all feeds, whatever `count`: the number of steps is compiled in. On a
        GPU XLA otherwise has the host decide before each step whether there is one.

    Returns:
      A function of the state, the data that stay on the device, the feeds (each
      leaf has a leading axis of at least `count` steps) and `count`; it returns
      the state and the summed metrics. Unless `whole`, one compilation serves every
      `count`.
    """

    def many(
        state: TrainState, resident: PyTree, feeds: PyTree, count: jax.Array
    ) -> tuple[TrainState, Metrics]:
        def body(i: jax.Array, carry: tuple) -> tuple:
            state, sums = carry
            feed = jax.tree.map(lambda x: x[i], feeds)
            state, metrics = step(state, gather(resident, feed))
            return state, jax.tree.map(jnp.add, sums, metrics)

        carry = (state, _sums(0, 0, 0))
        steps = jax.tree.leaves(feeds)[0].shape[0]
        if steps == 1:  # no loop around a single step
            return body(jnp.int32(0), carry)
        return lax.fori_loop(0, steps if whole else count, body, carry)

    return many


def _sums(loss: Any, correct: Any, count: Any) -> Metrics:
    sums = {"loss": loss, "correct": correct, "count": count}
    return {key: jnp.asarray(value, jnp.float32) for key, value in sums.items()}


def _split(parts: int, x: jax.Array) -> jax.Array:
    """[N, ...] to [parts, N / parts, ...]: every part is spread over all devices."""
    return x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)
