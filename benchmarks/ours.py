"""flaxcnn: the trainer's own optimizer, step, augmentation and compilation."""

import json
import math
import sys
import tempfile
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict
from safetensors.numpy import load_file, save_file

from benchmarks.batches import (
    CROP,
    RESIZE,
    batch_of,
    batches_a_step,
    center_statistics,
    statistics_of_each,
    uint8_images,
    write_images,
    write_photographs,
)
from benchmarks.benchmark import Benchmark, Contender, Effort, Setup, cores
from benchmarks.suites import LEARNING_RATE, MOMENTUM, WEIGHT_DECAY
from benchmarks.variants import replace_rule
from flaxcnn import create_model, default_config
from flaxcnn.registry import model_fields
from flaxcnn.train.config import Durations
from flaxcnn.train.loop import default_steps_per_call, whole_calls
from flaxcnn.train.mesh import make_devices
from flaxcnn.train.optim import make_optimizer
from flaxcnn.train.state import TrainState, init_state, init_variables
from flaxcnn.train.steps import Metrics, make_train_step, repeat
from flaxcnn.weights.torch import as_state_dict
from flaxcnn.xla import compiler_options, release_memory

SCANNED = ("flaxcnn_scan", "flaxcnn_command_buffers")


def save_weights(bench: Benchmark, folder: Path) -> int:
    """Draws weights for all contenders, in both layouts; returns their number."""
    model, sample = make_model(bench), jnp.zeros((1, bench.size, bench.size, 3))
    variables = init_variables(model, jax.random.key(0), sample)
    flat = jax.device_get(flatten_dict(variables, sep="/"))
    rng = np.random.default_rng(0)  # statistics that fold into something
    for path, x in flat.items():
        if path.startswith("batch_stats"):
            low = 0.5 if path.endswith("var") else -0.5
            flat[path] = rng.uniform(low, low + 1, x.shape).astype(np.float32)
    save_file(flat, folder / "flax.safetensors")
    torch = as_state_dict(unflatten_dict(flat, sep="/"))
    torch = {key: np.ascontiguousarray(x) for key, x in torch.items()}
    save_file(torch, folder / "torch.safetensors")
    return sum(x.size for path, x in flat.items() if path.startswith("params"))


def make_model(bench: Benchmark, exact: bool = False) -> Any:
    """Our network; with `exact` without dropout."""
    dtype = jnp.dtype(bench.dtype)
    if bench.net == "airbench94":
        from benchmarks.airbench import Airbench94

        return Airbench94(dtype=dtype)
    rates = [field for field in model_fields(bench.net) if "dropout" in field]
    off = dict.fromkeys(rates, 0.0) if exact else {}
    return create_model(bench.net, num_classes=bench.classes, dtype=dtype, **off)


def train(setup: Setup) -> Contender:
    """A training step, or with flaxcnn_scan many of them in one call."""
    bench = setup.bench
    jax.config.update("jax_enable_x64", bench.dtype == "float64")
    replace_rule(setup.contender)
    if setup.contender == "flaxcnn_fit" and not setup.exact:
        return epoch(setup)
    model = make_model(bench, setup.exact)
    if setup.contender == "flaxcnn_remat":
        model = model.clone(remat=True)
    optim = default_config().optim
    set_recipe(optim)
    durations = Durations(bench.batch, bench.batch)
    tx = make_optimizer(optim, durations, total=1_000_000)

    devices = make_devices("jit", bench.batch)
    images, labels = batch_of(bench)
    if setup.weights is None:
        state = init_state(model, tx, jnp.asarray(images[:1]), 0, ema=False)
    else:
        variables = unflatten_dict(
            load_file(setup.weights / "flax.safetensors"), sep="/"
        )
        variables = jax.tree.map(
            lambda x: x.astype(images.dtype, copy=False), variables
        )
        opt_state = tx.init(variables["params"])
        state = TrainState(jnp.int32(0), variables, opt_state, ema=None)
    state = devices.replicate(state)
    batch = devices.replicate({"image": images, "label": labels})
    train_step: Any = make_train_step(model, tx, num_classes=bench.classes)
    steps: int = 1
    feeds: tuple[Any, ...] = ()
    if setup.contender in SCANNED and not setup.exact:
        steps = default_steps_per_call()
        feeds = (jnp.zeros(steps), steps)
        train_step = repeat(train_step, lambda batch, feed: batch, whole_calls())
    with precision(setup.exact):
        program = devices.compile(train_step).lower(state, batch, *feeds).compile()
    del train_step  # and what jax keeps for it
    release_memory()
    metrics: Metrics = {}

    def step() -> None:
        nonlocal state, metrics
        state, metrics = program(state, batch, *feeds)

    def wait() -> float:
        return float(metrics["loss"]) / (steps * bench.batch)

    params = sum(x.size for x in jax.tree.leaves(state.variables["params"]))
    return Contender(step, wait, params, steps * bench.batch, steps=steps)


def infer(setup: Setup) -> Contender:
    """Logits, by BatchNorm folded into the convolutions."""
    from flaxcnn import fold_batchnorm

    assert setup.weights is not None
    model = make_model(setup.bench, setup.exact)
    variables = unflatten_dict(load_file(setup.weights / "flax.safetensors"), sep="/")
    params = sum(x.size for x in jax.tree.leaves(variables["params"]))
    shape = (setup.bench.size, setup.bench.size, 3)
    variables = jax.device_put(fold_batchnorm(model, variables, shape))
    images = jnp.asarray(batch_of(setup.bench)[0])
    forward = partial(model.apply, train=False)
    program = jax.jit(forward, compiler_options=compiler_options())
    logits: Any = None

    def step() -> None:
        nonlocal logits
        jax.block_until_ready(logits)  # one batch under way, as in PyTorch
        with precision(setup.exact):
            logits = program(variables, images)

    return Contender(
        step, lambda: float(logits[0, 0]), params, setup.bench.batch,
        lambda: logits.ravel().tolist(),
    )  # fmt: skip


def augment(setup: Setup) -> Contender:
    """Crop, flip and normalization of uint8 images, one jitted call a batch."""
    from flaxcnn.data import preprocess
    from flaxcnn.data.augment import make_augment

    bench = setup.bench
    data = default_config().data
    data.flip, data.translate = True, 4
    fitted = preprocess.fit("imagenet", np.zeros((1, 1, 1, 3), np.uint8))
    function = make_augment(data, bench.classes)
    images = jax.device_put(uint8_images(bench.batch, bench.size))
    labels = jnp.zeros(bench.batch, int)

    # Written over the batch before, as inside a train step: no memory is asked for.
    @partial(
        jax.jit, compiler_options=compiler_options(), donate_argnums=3, keep_unused=True
    )
    def program(
        images: jax.Array, labels: jax.Array, count: jax.Array, before: jax.Array
    ) -> jax.Array:
        keys = jax.random.split(
            jax.random.fold_in(jax.random.key(0), count), len(images)
        )
        x = preprocess.apply(fitted.kind, fitted.arrays, images)
        return function({"image": x, "label": labels}, keys)[0]

    count, result = 0, jnp.zeros(images.shape)

    def step() -> None:
        nonlocal count, result
        jax.block_until_ready(result)
        result, count = program(images, labels, count, result), count + 1

    return Contender(
        step, lambda: float(result[0, 0, 0, 0]), 0, bench.batch,
        lambda: center_statistics(np.asarray(result)),
    )  # fmt: skip


def jpeg(setup: Setup) -> Contender:
    """Photographs as the trainer reads them; its images a step are those of a core."""
    from flaxcnn.data.augment import make_augment
    from flaxcnn.data.pipeline import load_data, make_gather

    bench = setup.bench
    temporary = tempfile.TemporaryDirectory(prefix="flaxcnn-benchmark-")
    write_photographs(bench, Path(temporary.name))
    config = default_config().data
    config.name, config.pipeline = f"folder:{temporary.name}", "host"
    config.image_size, config.resize = CROP, RESIZE
    config.preprocess, config.flip = "imagenet", True
    data = load_data(config, bench.batch, seed=0)
    pipeline = data.train.in_order(bench.batch) if setup.exact else data.train
    gather, function = make_gather("imagenet", lambda x: x), make_augment(config, 1)
    arrays = jax.device_put({"preprocess": data.preprocess.arrays})

    @partial(jax.jit, compiler_options=compiler_options())
    def program(feeds: Any, count: jax.Array) -> jax.Array:
        batch = gather(arrays, jax.tree.map(lambda x: x[0], feeds))
        key = jax.random.fold_in(jax.random.key(0), count)
        return function(batch, jax.random.split(key, bench.batch))[0]

    count, result = 0, jnp.zeros(())
    batches = batches_a_step(setup.exact)

    def step() -> None:
        nonlocal count, result
        assert temporary.name  # the files live as long as the step
        for _ in range(batches):
            feeds = pipeline.feeds(range(count, count + 1))
            jax.block_until_ready(result)  # one batch under way
            result, count = program(feeds, count), count + 1

    return Contender(
        step, lambda: float(result.ravel()[0]), 0, batches * bench.batch / cores(),
        lambda: statistics_of_each(np.asarray(result)),
    )  # fmt: skip


def epoch(setup: Setup) -> Contender:
    """The trainer itself, `fit`: images a second between the rows of its log."""
    from flaxcnn import fit

    bench, rate = setup.bench, 0.0
    temporary = tempfile.TemporaryDirectory(prefix="flaxcnn-benchmark-")
    write_images(bench, Path(temporary.name) / "images")

    def windows(effort: Effort) -> list[float]:
        nonlocal rate
        call = default_steps_per_call()
        steps = max(effort.steps, effort.seconds * rate / bench.batch)
        steps = math.ceil(steps / call) * call
        with tempfile.TemporaryDirectory(dir=temporary.name) as workdir:
            with redirect_stdout(sys.stderr):
                fit(
                    trainer_config(bench, temporary.name, steps, effort.windows),
                    workdir,
                )
            lines = (Path(workdir) / "metrics.jsonl").read_text().splitlines()
        rows = [row for row in map(json.loads, lines) if row["split"] == "train"]
        seconds = np.diff([row["seconds"] for row in rows])  # the first one compiles
        rates = [steps * bench.batch / max(s, 0.01) for s in seconds]
        rate = float(np.median(rates))
        if steps * bench.batch / rate < effort.seconds / 2:  # the guess was too low
            return windows(effort)
        return rates

    return Contender(lambda: None, lambda: 0.0, 0, bench.batch, windows=windows)


def trainer_config(
    bench: Benchmark, folder: str, steps: int, windows: int
) -> ConfigDict:
    """Crop, flip and normalization; a row of the log for each window, after a first."""
    config = default_config()
    config.model.name = bench.net
    set_recipe(config.optim)
    config.precision = "bf16" if bench.dtype == "bfloat16" else "fp32"
    config.data.name = f"folder:{folder}/images"
    config.data.preprocess = "imagenet"
    config.data.flip, config.data.translate = True, 4
    if bench.size > 64:
        config.data.image_size, config.data.pipeline = bench.size, "host"
    config.batch_size = bench.batch
    config.steps = steps * (windows + 1)
    config.log_every = f"{steps} steps"
    config.eval_every = config.checkpoint_every = f"{config.steps} steps"
    return config


def set_recipe(optim: ConfigDict) -> None:
    optim.lr, optim.momentum, optim.weight_decay = LEARNING_RATE, MOMENTUM, WEIGHT_DECAY


def precision(exact: bool) -> AbstractContextManager:
    """Full float32 on a GPU as well, where it is asked for."""
    return jax.default_matmul_precision("highest") if exact else nullcontext()


def gpu_peak() -> int:
    """Bytes in use on the GPU at the peak; 0 on the CPU."""
    device = jax.local_devices()[0]
    stats = (device.memory_stats() or {}) if device.platform != "cpu" else {}
    return stats.get("peak_bytes_in_use", 0)
