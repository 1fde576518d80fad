"""Stock flax.linen, trained as in the Flax examples."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax.training.train_state import TrainState
from flax.traverse_util import unflatten_dict

from benchmarks.suites import (
    LEARNING_RATE,
    MOMENTUM,
    WEIGHT_DECAY,
    Benchmark,
    Contender,
    Weights,
    cores,
)


class AllCNNC(nn.Module):
    """All-CNN-C, arXiv:1412.6806."""

    classes: int
    dropout: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits [N, classes] of images [N, H, W, C], in training."""
        x = nn.Dropout(0.2 * self.dropout, deterministic=False)(x)
        for block, width in enumerate((96, 192)):
            for layer, stride in enumerate((1, 1, 2), start=3 * block + 1):
                conv = nn.Conv(width, (3, 3), stride, padding=1, name=f"conv{layer}")
                x = nn.relu(conv(x))
            x = nn.Dropout(0.5 * self.dropout, deterministic=False)(x)
        x = nn.relu(nn.Conv(192, (3, 3), padding="VALID", name="conv7")(x))
        x = nn.relu(nn.Conv(192, (1, 1), name="conv8")(x))
        x = nn.relu(nn.Conv(self.classes, (1, 1), name="conv9")(x))
        return x.mean((1, 2))


NETS = {"allcnn_c": AllCNNC}


def train(
    bench: Benchmark,
    weights: Weights,
    images: np.ndarray,
    labels: np.ndarray,
    dropout: bool,
) -> Contender:
    """A training step of stock flax."""
    model = NETS[bench.net](bench.classes, dropout)
    key = jax.random.key(0)
    x, y = jax.device_put((images, labels))
    shapes = jax.eval_shape(model.init, {"params": key, "dropout": key}, x)
    state = TrainState.create(
        apply_fn=model.apply,
        params=jax.device_put(unflatten_dict(weights, sep="/")["params"]),
        tx=optax.sgd(LEARNING_RATE, MOMENTUM),
    )

    @partial(jax.jit, donate_argnums=0)
    def train_step(
        state: TrainState, x: jax.Array, y: jax.Array, key: jax.Array
    ) -> tuple[TrainState, jax.Array]:
        def loss_fn(params: dict) -> tuple[jax.Array, jax.Array]:
            rngs = {"dropout": jax.random.fold_in(key, state.step)}
            logits = state.apply_fn({"params": params}, x, rngs=rngs)
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
            kernels = [w for w in jax.tree.leaves(params) if w.ndim > 1]
            l2 = sum(jnp.sum(w**2) for w in kernels)
            return loss + WEIGHT_DECAY * 0.5 * l2, loss

        (_, loss), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        return state.apply_gradients(grads=grads), loss

    last = jnp.nan

    def step() -> None:
        nonlocal state, last
        state, last = train_step(state, x, y, key)

    params = sum(x.size for x in jax.tree.leaves(shapes["params"]))
    return Contender(step, lambda: float(last), params, cores())
