"""The loop: `fit(config, workdir)` is the program."""

import contextlib
import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

import flaxcnn
from flaxcnn.data.augment import make_augment
from flaxcnn.data.pipeline import Data, load_data, make_gather
from flaxcnn.errors import FlaxcnnError
from flaxcnn.registry import create_model, model_fields
from flaxcnn.train.checkpoint import Checkpoints
from flaxcnn.train.config import Durations, check_config, default_config, flatten
from flaxcnn.train.log import Log, logger
from flaxcnn.train.mesh import any_process, make_devices
from flaxcnn.train.optim import make_optimizer
from flaxcnn.train.state import init_state
from flaxcnn.train.steps import make_eval_step, make_train_step, repeat

# What may differ between a run and its continuation.
FREE_KEYS = ("data.dir", "log_every", "checkpoint_every", "keep", "resume")
STEPS_PER_CALL = 64  # on accelerators, where a call costs as much as a small step


def fit(config: ConfigDict, workdir: str | Path) -> dict[str, float]:
    """Trains, evaluates and saves what the config describes.

    The same call continues a run that was interrupted, bit by bit as if it had not
    been. SIGTERM and SIGINT save and return.

    Args:
      config: see `flaxcnn.train.config.default_config`.
      workdir: config.json, metrics.jsonl, metrics.csv, TensorBoard events,
        checkpoints/, model.safetensors, curves.png and log.txt go there.

    Returns:
      The last test row: {"loss", "accuracy", ...}; empty if it was interrupted
      before the first one.

    Raises:
      FlaxcnnError: bad input, a full disk, or a loss that is not finite.
    """
    check_config(config)
    if config.deterministic:
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true"
    workdir = Path(workdir).expanduser().resolve()
    check_workdir(workdir, config)
    trainer = Trainer(config, workdir)
    try:
        with trainer.checkpoints.clear_errors():
            return trainer.run()
    finally:
        trainer.close()


class Trainer:
    """One run. Bad input shows while it is made, before it leaves anything behind."""

    step: int  # steps done
    evaluated: int  # the step of the last evaluation
    pending: list[dict]  # metrics of steps since the last fetch, still on the device
    sums: dict[str, float]  # of the steps since the last row

    def __init__(self, config: ConfigDict, workdir: Path):
        self.config, self.workdir = config, workdir
        self.devices = make_devices(config.parallel, config.batch_size)
        self.data = load_data(config.data, config.batch_size, config.seed)
        self.model = build_model(config, self.data)
        self.durations = Durations(self.data.train_examples, config.batch_size)
        self.total = self.durations.total(config)
        self.every = {
            what: self.durations.period(config[f"{what}_every"])
            for what in ("log", "eval", "checkpoint")
        }
        tx = make_optimizer(config.optim, self.durations, self.total)
        sample = jnp.zeros((1, *self.data.image_shape), jnp.float32)
        self.state = init_state(self.model, tx, sample, config.seed, config.ema > 0)
        self.params = sum(
            x.size for x in jax.tree.leaves(self.state.variables["params"])
        )
        self.steps_per_call = config.steps_per_call or (
            1 if jax.default_backend() == "cpu" else STEPS_PER_CALL
        )
        self._make_programs(tx)
        self.primary = jax.process_index() == 0
        if self.primary:
            write_config(workdir, config)
        self.checkpoints = Checkpoints(workdir, config.keep)
        self._restore()
        self.log = Log(workdir, self.step, self.total, self.primary)

    def run(self) -> dict[str, float]:
        """Trains to the end, or until a signal; returns the last test row."""
        self._greet()
        with stop_signals() as stopped:
            while self.step < self.total and not any_process(stopped()):
                self.train(self._next_stop())
                if self._due("eval"):
                    self.evaluate()
                if self._due("checkpoint") and self.step < self.total:
                    self.save()
            if self.step < self.total:
                self.save()
                self.checkpoints.finish()
                logger.info(
                    "stopped at step %d of %d; the same command continues from there",
                    self.step, self.total,
                )  # fmt: skip
            else:
                self.finish()
        return next((row for row in self.log.rows[::-1] if row["split"] == "test"), {})

    def train(self, stop: int) -> None:
        """Steps up to `stop`, in calls of a few, without waiting for the last ones."""
        while self.step < stop:
            steps = range(self.step, min(stop, self.step + self.steps_per_call))
            feeds = self._feeds(self.data.train, steps, self.steps_per_call)
            args = (self.state, self.train_resident, feeds, len(steps))
            program = self._compiled("training", self.train_many, args)
            started = time.perf_counter()
            self.state, metrics = program(*args)
            self.pending.append(metrics)
            # Two calls may be under way: enough to hide the host, few enough to stop.
            jax.block_until_ready(self.pending[-3:][0])
            self.sums["seconds"] += time.perf_counter() - started
            self.step = steps.stop
            self.log.advance(self.step, self._images_per_second())
        if self._due("log"):
            self._log_training()

    def evaluate(self) -> None:
        """All test samples, each once; one row."""
        started = time.perf_counter()
        sums = {"loss": 0.0, "correct": 0.0, "count": 0.0}
        variables = self.state.eval_variables
        pending = []
        for first in range(0, self.data.eval_steps, self.steps_per_call):
            stop = min(self.data.eval_steps, first + self.steps_per_call)
            feeds = self._feeds(self.data.test, range(first, stop), self.steps_per_call)
            args = (variables, self.test_resident, feeds, stop - first)
            program = self._compiled("evaluation", self.eval_many, args)
            variables, metrics = program(*args)
            pending.append(metrics)
            jax.block_until_ready(pending[-3:][0])
        add(sums, pending, self.devices.local)
        if sums["count"] != self.data.test_examples:
            raise AssertionError(
                f"evaluated {sums['count']} of {self.data.test_examples} samples"
            )
        seconds = time.perf_counter() - started
        self._row("test", sums, sums["count"] / seconds)
        self.evaluated = self.step

    def save(self) -> None:
        """A checkpoint of this step, unless the step itself broke the parameters."""
        self._collect()
        if not all_finite(self.state.variables):
            raise self._diverged("parameters are")
        rows = [row for row in self.log.rows if row["split"] == "test"]
        accuracy = rows[-1]["accuracy"] if self.evaluated == self.step else None
        progress = {"sums": dict(self.sums), "seconds": self._seconds()}
        self.checkpoints.save(
            self.step, self.devices.local(self.state), progress, accuracy
        )

    def finish(self) -> None:
        """What a finished run leaves behind."""
        if self.evaluated != self.step:
            self.evaluate()
        self.save()
        self.checkpoints.finish()
        if not self.primary:
            return
        from flaxcnn.plots import learning_curves
        from flaxcnn.weights.files import save_model

        learning_curves(self.log.rows, self.workdir / "curves.png")
        save_model(
            self.workdir / "model.safetensors",
            jax.device_get(self.devices.local(self.state.eval_variables)),
            model_metadata(self.config, self.data),
            self.data.preprocess.arrays,
        )
        logger.info("done: %s", shown(self.workdir))

    def close(self) -> None:
        self.checkpoints.close()
        self.log.close()

    def _make_programs(self, tx: Any) -> None:
        config, data = self.config, self.data
        classes, axis = len(data.classes), self.devices.axis_name
        gather = make_gather(config.data.preprocess, self.devices.constrain)
        train_step = make_train_step(
            self.model, tx, num_classes=classes, seed=config.seed,
            label_smoothing=config.label_smoothing, ema=config.ema,
            grad_accum=config.grad_accum, augment=make_augment(config.data, classes),
            axis_name=axis,
        )  # fmt: skip
        eval_step = make_eval_step(self.model, classes, axis)
        self.train_many = self.devices.compile(repeat(train_step, gather))
        self.eval_many = self.devices.compile(
            repeat(lambda v, batch: (v, eval_step(v, batch)), gather), donate=False
        )
        self.programs: dict[str, Callable] = {}
        arrays = {"preprocess": data.preprocess.arrays}
        self.train_resident = self.devices.replicate({**data.train.resident, **arrays})
        self.test_resident = self.devices.replicate({**data.test.resident, **arrays})

    def _restore(self) -> None:
        self.step, self.evaluated, self.pending = 0, -1, []
        self.sums = {"loss": 0.0, "correct": 0.0, "count": 0.0, "seconds": 0.0}
        self.seconds_before = 0.0
        restored = self.checkpoints.restore(self.state, self.devices.replicated)
        if restored:
            state, progress = restored
            self.state, self.step = state, int(state.step)
            self.sums, self.seconds_before = progress["sums"], progress["seconds"]
        self.state = self.devices.replicate(self.state)

    def _greet(self) -> None:
        logger.info(
            "%s (%s parameters) on %s: %s training, %s test images, %d classes",
            self.config.model.name, f"{self.params:,}", self.config.data.name,
            f"{self.data.train_examples:,}", f"{self.data.test_examples:,}",
            len(self.data.classes),
        )  # fmt: skip
        logger.info(
            "%d steps of %d images on %d %s device(s) by %s, %s; jax %s; workdir %s",
            self.total, self.config.batch_size, jax.device_count(),
            jax.default_backend(), self.config.parallel, self.config.precision,
            jax.__version__, shown(self.workdir),
        )  # fmt: skip
        if self.step:
            logger.info("continuing from step %d", self.step)

    def _next_stop(self) -> int:
        """The next step after which something is due."""
        due = [
            max(self.step + 1, math.ceil((self._times(what, self.step) + 1) * every))
            for what, every in self.every.items()
        ]
        return min(self.total, *due)

    def _due(self, what: str) -> bool:
        """Has one of the event's times come with this step?"""
        now, before = self._times(what, self.step), self._times(what, self.step - 1)
        return now > before or self.step == self.total

    def _times(self, what: str, step: int) -> int:
        """How often the event has come by then; its period need not be whole."""
        return math.floor(Fraction(step) / self.every[what])

    def _feeds(self, pipeline: Any, steps: range, length: int) -> Any:
        feeds = pipeline.feeds(steps)
        missing = length - len(steps)
        if missing:  # one shape for every call; the program runs len(steps) of them
            feeds = {k: np.concatenate([x, np.repeat(x[-1:], missing, 0)])
                     for k, x in feeds.items()}  # fmt: skip
        return self.devices.shard(feeds)

    def _compiled(self, name: str, program: Any, args: tuple) -> Callable:
        if name not in self.programs:
            started = time.perf_counter()
            self.programs[name] = program.lower(*args).compile()
            seconds = time.perf_counter() - started
            logger.info("compiled the %s program in %.1f s", name, seconds)
        return self.programs[name]

    def _collect(self) -> None:
        """Fetches the metrics of the steps done; stops at a loss that is not finite."""
        started = time.perf_counter()
        add(self.sums, self.pending, self.devices.local)
        self.sums["seconds"] += time.perf_counter() - started
        self.pending = []
        if not math.isfinite(self.sums["loss"]):
            raise self._diverged("loss is")

    def _diverged(self, what: str) -> FlaxcnnError:
        good = self.checkpoints.latest
        return FlaxcnnError(
            f"the {what} not finite at step {self.step}; "
            + (f"the last good checkpoint is of step {good}; " if good else "")
            + f"try a lower config.optim.lr than {self.config.optim.lr:g}, "
            "a config.optim.warmup or config.optim.clip=1.0"
        )

    def _log_training(self) -> None:
        self._collect()
        self._row("train", self.sums, self._images_per_second())
        self.sums = dict.fromkeys(self.sums, 0.0)

    def _row(self, split: str, sums: dict[str, float], speed: float) -> None:
        epoch = self.step * self.config.batch_size / self.data.train_examples
        loss, accuracy = (sums[key] / sums["count"] for key in ("loss", "correct"))
        self.log.row(
            step=self.step, epoch=round(epoch, 4), split=split, loss=loss,
            accuracy=accuracy, images_per_second=round(speed, 1),
            seconds=round(self._seconds(), 2),
        )  # fmt: skip
        logger.info(
            "epoch %-7.4g step %-6d %-5s loss %.4f  accuracy %6.2f %%  %7.0f images/s",
            epoch, self.step, split, loss, 100 * accuracy, speed,
        )  # fmt: skip

    def _images_per_second(self) -> float:
        count = self.sums["count"] + len(self.pending) * self.config.batch_size
        return count / self.sums["seconds"] if self.sums["seconds"] else 0.0

    def _seconds(self) -> float:
        return self.seconds_before + time.perf_counter() - self.log.started


def build_model(config: ConfigDict, data: Data) -> Any:
    """The config's model with as many classes as the data have."""
    fields = {k: v for k, v in config.model.items() if k != "name"}
    classes = fields.setdefault("num_classes", len(data.classes))
    if classes != len(data.classes):
        raise FlaxcnnError(
            f"config.model.num_classes={classes}, but {config.data.name} has "
            f"{len(data.classes)} classes; leave it out, it follows the data"
        )
    dtype = {"fp32": jnp.float32, "bf16": jnp.bfloat16}[config.precision]
    return create_model(config.model.name, **fields, dtype=dtype)


def model_metadata(config: ConfigDict, data: Data) -> dict[str, Any]:
    """What model.safetensors says about itself."""
    given = dict(config.model)
    fields = {k: v for k, (_, v) in model_fields(given.pop("name")).items()}
    return {
        "version": flaxcnn.__version__,
        "model": config.model.name,
        "fields": {**fields, **given, "num_classes": len(data.classes)},
        "classes": list(data.classes),
        "image_shape": list(data.image_shape),
        "preprocess": data.preprocess.kind,
        "data": config.data.name,
    }


def check_workdir(workdir: Path, config: ConfigDict) -> None:
    """Raises FlaxcnnError if the workdir belongs to another run."""
    path = workdir / "config.json"
    if not path.exists():
        return
    if not config.resume:
        raise FlaxcnnError(
            f"{workdir} holds a run already; continue it with --config.resume=true, "
            "or choose another --workdir"
        )
    # A key that is younger than the run had its default.
    old = {**flatten(default_config()), **json.loads(path.read_text())}
    new = json.loads(json.dumps(flatten(config)))
    differences = [
        f"{key}: {old.get(key)!r} there, {new.get(key)!r} now"
        for key in sorted({*old, *new} - {*FREE_KEYS})
        if old.get(key) != new.get(key)
    ]
    if differences:
        raise FlaxcnnError(
            f"{workdir} belongs to a run of another config ({'; '.join(differences)}); "
            "choose another --workdir"
        )


def write_config(workdir: Path, config: ConfigDict) -> None:
    """config.json, for `check_workdir` and the reader."""
    workdir.mkdir(parents=True, exist_ok=True)
    part = workdir / "config.json.part"
    part.write_text(json.dumps(flatten(config), indent=1) + "\n")
    os.replace(part, workdir / "config.json")


def shown(path: Path) -> Path:
    """The path as one would type it from here."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


@jax.jit
def all_finite(tree: Any) -> jax.Array:
    """Is every number of the tree finite?"""
    return jnp.all(jnp.array([jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]))


def add(sums: dict[str, float], pending: list[dict], local: Callable) -> None:
    """Adds device metrics to sums on the host."""
    for metrics in jax.device_get(local(pending)):
        for key, value in metrics.items():
            sums[key] += float(value)


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Turns SIGTERM and SIGINT into a flag; a second one acts as usual."""
    received = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    old = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}

    def note(number: int, frame: Any) -> None:
        received.append(number)
        signal.signal(number, old[signal.Signals(number)])

    for number in old:
        signal.signal(number, note)
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
