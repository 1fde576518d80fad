"""flaxcnn: the trainer's own optimizer, step and compilation."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from benchmarks.suites import (
    LEARNING_RATE,
    MOMENTUM,
    WEIGHT_DECAY,
    Benchmark,
    Contender,
    Weights,
    cores,
)
from flaxcnn import create_model, default_config, model_info
from flaxcnn.registry import model_fields
from flaxcnn.train.config import Durations
from flaxcnn.train.mesh import make_devices
from flaxcnn.train.optim import make_optimizer
from flaxcnn.train.state import TrainState
from flaxcnn.train.steps import Metrics, make_train_step


def fresh_weights(bench: Benchmark) -> Weights:
    """Fresh weights, for all contenders."""
    model = create_model(bench.net, num_classes=bench.classes)
    sample = jnp.zeros((1, *model_info(bench.net).input_size))
    variables = jax.jit(partial(model.init, train=False))(jax.random.key(0), sample)
    return jax.device_get(flatten_dict(variables, sep="/"))


def train(
    bench: Benchmark,
    weights: Weights,
    images: np.ndarray,
    labels: np.ndarray,
    dropout: bool,
) -> Contender:
    """A training step of flaxcnn."""
    rates = [field for field in model_fields(bench.net) if "dropout" in field]
    off = {} if dropout else dict.fromkeys(rates, 0.0)
    model = create_model(bench.net, num_classes=bench.classes, **off)
    optim = default_config().optim
    optim.lr, optim.momentum, optim.weight_decay = LEARNING_RATE, MOMENTUM, WEIGHT_DECAY
    durations = Durations(len(images), len(images))
    tx = make_optimizer(optim, durations, total=1_000_000)

    devices = make_devices("jit", len(images))
    variables = unflatten_dict(weights, sep="/")
    opt_state = tx.init(variables["params"])
    state = TrainState(jnp.int32(0), variables, opt_state, ema=None)
    state = devices.replicate(state)
    batch = devices.replicate({"image": images, "label": labels})
    program = devices.compile(make_train_step(model, tx, num_classes=bench.classes))
    metrics: Metrics = {}

    def step() -> None:
        nonlocal state, metrics
        state, metrics = program(state, batch)

    def loss() -> float:
        return float(metrics["loss"]) / len(images)

    params = sum(x.size for x in jax.tree.leaves(state.variables["params"]))
    return Contender(step, loss, params, cores())  # XLA has a thread for each core
