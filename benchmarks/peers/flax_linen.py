"""Stock flax.linen, trained as in the Flax ImageNet example (jit for its pmap)."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.training.train_state import TrainState
from flax.traverse_util import unflatten_dict
from safetensors.numpy import load_file

from benchmarks.batches import batch_of
from benchmarks.benchmark import Contender, Setup
from benchmarks.peers.flax_nets import make
from benchmarks.suites import LEARNING_RATE, MOMENTUM, WEIGHT_DECAY


class State(TrainState):
    """As in the example."""

    batch_stats: Any


def train(setup: Setup) -> Contender:
    """A training step of stock flax."""
    jax.config.update("jax_enable_x64", setup.bench.dtype == "float64")
    model, key = make(setup.bench, setup.exact), jax.random.key(0)
    x, y = jax.device_put(batch_of(setup.bench))
    variables = jax.tree.map(
        lambda w: w.astype(x.dtype, copy=False), load_weights(setup)
    )
    state = jax.device_put(State.create(
        apply_fn=model.apply, params=variables["params"],
        tx=optax.sgd(LEARNING_RATE, MOMENTUM),
        batch_stats=variables.get("batch_stats", {}),
    ))  # fmt: skip

    @partial(jax.jit, donate_argnums=0)
    def train_step(
        state: State, x: jax.Array, y: jax.Array, key: jax.Array
    ) -> tuple[State, jax.Array]:
        def loss_fn(params: dict) -> tuple[jax.Array, Any]:
            logits, updates = model.apply(
                {"params": params, "batch_stats": state.batch_stats}, x,
                mutable=["batch_stats"],
                rngs={"dropout": jax.random.fold_in(key, state.step)},
            )  # fmt: skip
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
            kernels = [w for w in jax.tree.leaves(params) if w.ndim > 1]
            l2 = sum(jnp.sum(w**2) for w in kernels)
            return loss + WEIGHT_DECAY * 0.5 * l2, (loss, updates)

        grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
        (_, (loss, updates)), grads = grad_fn(state.params)
        batch_stats = updates.get("batch_stats", {})
        return state.apply_gradients(grads=grads, batch_stats=batch_stats), loss

    last: Any = jnp.nan

    def step() -> None:
        nonlocal state, last
        with jax.default_matmul_precision("highest" if setup.exact else "default"):
            state, last = train_step(state, x, y, key)

    params = sum(x.size for x in jax.tree.leaves(variables["params"]))
    return Contender(step, lambda: float(last), params, setup.bench.batch)


def load_weights(setup: Setup) -> dict[str, Any]:
    """The variables; the matrix on a flattened map is a plain Dense layer's here."""
    assert setup.weights is not None
    flat = {}
    for path, x in load_file(setup.weights / "flax.safetensors").items():
        if path.endswith("map_kernel"):
            path, x = path.replace("map_kernel", "kernel"), x.reshape(-1, x.shape[-1])
        flat[path] = x
    return unflatten_dict(flat, sep="/")
