"""The loop: `fit(config, workdir)` is the program."""

import contextlib
import functools
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from flaxcnn.data.augment import make_augment
from flaxcnn.data.pipeline import DevicePipeline, load_data, make_gather
from flaxcnn.errors import DivergedError, FlaxcnnError
from flaxcnn.train.checkpoint import Checkpoints, clear_disk_errors
from flaxcnn.train.config import Durations, check_config
from flaxcnn.train.log import Log, logger
from flaxcnn.train.mesh import any_process, make_devices
from flaxcnn.train.model import aux_weights, build_model, model_metadata
from flaxcnn.train.optim import make_optimizer
from flaxcnn.train.signals import stop_signals
from flaxcnn.train.state import TrainState, init_state
from flaxcnn.train.steps import make_eval_step, make_train_step, repeat
from flaxcnn.train.transfer import cache_features, load_start, make_plan
from flaxcnn.train.workdir import check_workdir, shown, write_config
from flaxcnn.xla import release_memory, use_compilation_cache

CALLS_PER_VOTE = 16  # between two questions whether any process was told to stop
SUMS = ("loss", "correct", "count")


def default_steps_per_call() -> int:
    """How many steps a call takes where the data lie on the device.

    On accelerators a call costs as much as a small step. On CPU it asks for its memory
    anew, and the system's pages are a tenth of a step: more steps would give little
    more, and be later to stop.
    """
    return 4 if jax.default_backend() == "cpu" else 64


def whole_calls() -> bool:
    """Does a call take all of its steps or one, by two programs (`steps.repeat`)?

    On CPU one program takes as many as there are: it is compiled once.
    """
    return jax.default_backend() != "cpu"


def fit(config: ConfigDict, workdir: str | Path) -> dict[str, Any]:
    """Trains, evaluates and saves what the config describes.

    The same call continues a run that was interrupted, bit by bit as if it had not
    been. SIGTERM and SIGINT save and return.

    Args:
      config: see `flaxcnn.train.config.default_config`. `deterministic` sets an XLA
        flag, which counts only if jax has not used its devices yet.
      workdir: config.json, metrics.jsonl, metrics.csv, TensorBoard events,
        checkpoints/, model.safetensors, curves.png and log.txt go there.

    Returns:
      The last test row: {"loss", "accuracy", ...}; empty if it was interrupted
      before the first one.

    Raises:
      FlaxcnnError: bad input, a full disk, too little memory, or a loss that is not
        finite (DivergedError, with the step).
    """
    check_config(config)
    if config.deterministic:
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true"
    use_compilation_cache()
    workdir = Path(workdir).expanduser().resolve()
    check_workdir(workdir, config)
    with (
        clear_disk_errors(workdir),
        clear_memory_errors(),
        contextlib.ExitStack() as stack,
    ):
        trainer = Trainer(config, workdir)
        stack.callback(trainer.close)
        return trainer.run()


class Trainer:
    """One run. Bad input shows while it is made, before it leaves anything behind."""

    step: int  # steps done
    pending: list[dict]  # metrics of steps, still on the device
    sums: dict[str, float]  # of metrics, seconds, those spent on getting batches
    images: int  # since the last row
    last_test: dict[str, Any]  # row

    def __init__(self, config: ConfigDict, workdir: Path):
        self.config, self.workdir = config, workdir
        self.devices = make_devices(
            config.parallel, config.batch_size, config.grad_accum
        )
        self.data = load_data(config.data, config.batch_size, config.seed)
        self.durations = Durations(self.data.train_examples, config.batch_size)
        self.total = self.durations.total(config)
        self.every = {
            what: self.durations.period(config[f"{what}_every"], f"config.{what}_every")
            for what in ("log", "eval", "checkpoint")
        }
        model = build_model(config, self.data)
        loaded, self.data, self.report = load_start(config, model, self.data)
        self.plan = plan = make_plan(config, model, self.data.image_shape)
        tx = make_optimizer(config.optim, self.durations, self.total, plan.lr_factors)
        sample = jnp.zeros((1, *self.data.image_shape), jnp.float32)
        fresh = init_state(
            model, tx, sample, config.seed, config.ema > 0, plan.trained, loaded
        )
        self.report.append(plan.report)
        self.state = self.devices.replicate(fresh)
        # All processes ask before any of them writes.
        continues = any_process((workdir / "config.json").exists())
        if continues:
            self._restore(fresh)
        if config.transfer.cache_features:
            variables = self.devices.local(self.state).variables
            self.data, line = cache_features(
                plan.network, variables, self.data, config.batch_size
            )
            self.report.append(line)
        resident = isinstance(self.data.train, DevicePipeline)
        self.steps_per_call = config.steps_per_call or (
            default_steps_per_call() if resident else 1
        )
        self.whole = whole_calls()
        self._make_programs(plan.network, aux_weights(config, model), tx)
        self.primary = jax.process_index() == 0
        if self.primary:
            write_config(workdir, config)
        if not continues:
            self._restore(fresh)
        self.log = Log(workdir, self.step, self.total, self.primary)
        tests = [row for row in self.log.rows if row["split"] == "test"]
        self.last_test = tests[-1] if tests else {"step": -1}

    def run(self) -> dict[str, Any]:
        """Trains to the end, or until a signal; returns the last test row."""
        self._greet()
        with stop_signals() as self.signalled:
            if self.step and self._due("eval"):  # the run stopped before it
                self.evaluate()
            while self.step < self.total and not self._stopped():
                self.train(self._next_stop())
                if self._due("log"):
                    self._log_training()
                if self._due("eval"):
                    self.evaluate()
                if self._due("checkpoint") and self.step < self.total:
                    self.save()
            if self.last_test["step"] < self.total:  # a signal came first
                self.save()
                self.checkpoints.finish()
                logger.info(
                    "stopped at step %d of %d; the same command continues from there",
                    self.step, self.total,
                )  # fmt: skip
            else:
                self.finish()
        return self.last_test if self.last_test["step"] >= 0 else {}

    def train(self, stop: int) -> None:
        """Steps up to `stop`, or until a signal, in calls of a few: one at least."""
        for steps in self._calls(self.step, stop):
            program = self._compiled("training", steps)
            started = time.perf_counter()
            feeds = self._feeds(self.data.train, steps)
            self.sums["waited"] += time.perf_counter() - started
            self.state, metrics = program(
                self.state, self.train_resident, feeds, len(steps)
            )
            self.pending.append(metrics)
            # Two calls may be under way: enough to hide the host, few enough to stop.
            jax.block_until_ready(self.pending[-3:][0])
            self.sums["seconds"] += time.perf_counter() - started
            self.step = steps.stop
            self.images += len(steps) * self.config.batch_size
            self.log.advance(self.step, self.images / self.sums["seconds"])
            if self._stopped():
                return

    def evaluate(self) -> None:
        """All test samples, each once; one row. A signal leaves it for later."""
        if self.last_test["step"] == self.step:
            return
        calls = [
            (self._compiled("evaluation", steps), steps)
            for steps in self._calls(0, self.data.eval_steps)
        ]
        started, waited = time.perf_counter(), 0.0
        variables, pending = self.state.eval_variables, []
        for program, steps in calls:
            if self._stopped():
                return
            asked = time.perf_counter()
            feeds = self._feeds(self.data.test, steps)
            waited += time.perf_counter() - asked
            variables, metrics = program(
                variables, self.test_resident, feeds, len(steps)
            )
            pending.append(metrics)
            jax.block_until_ready(pending[-3:][0])
        sums = self._fetch(pending)
        assert sums["count"] == self.data.test_examples, "not every sample once"
        if not math.isfinite(sums["loss"]):
            raise self._diverged("test loss is")
        seconds = time.perf_counter() - started
        self.last_test = self._row(
            "test", {**sums, "seconds": seconds, "waited": waited}
        )

    def save(self) -> None:
        """A checkpoint of this step, unless the step itself broke the parameters."""
        self._collect()
        if not all_finite(self.state.variables):
            raise self._diverged("parameters are")
        measured = self.last_test["step"] == self.step
        self.checkpoints.save(
            self.step,
            self.devices.local(self.state),
            {"sums": dict(self.sums), "seconds": self._seconds()},
            self.last_test["accuracy"] if measured else None,
        )

    def finish(self) -> None:
        """What a finished run leaves behind."""
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
        self.log.close()
        self.checkpoints.close()

    def _make_programs(self, network: Any, aux: Mapping[str, float], tx: Any) -> None:
        """Traces both programs, which finds what cannot work in them."""
        config, data = self.config, self.data
        classes, axis = len(data.classes), self.devices.axis_name
        gather = make_gather(config.data.preprocess, self.devices.constrain)
        train_step = make_train_step(
            network, tx, num_classes=classes, seed=config.seed,
            label_smoothing=config.label_smoothing, ema=config.ema,
            grad_accum=config.grad_accum, augment=make_augment(config.data, classes),
            aux_weights=aux, trained=self.plan.trained, axis_name=axis,
        )  # fmt: skip
        eval_step = make_eval_step(network, classes, config.eval_flip, axis)
        many = functools.partial(repeat, gather=gather, whole=self.whole)
        evaluate = many(lambda v, batch: (v, eval_step(v, batch)))
        place = self.devices.replicate
        shared = place({"preprocess": data.preprocess.arrays})
        self.train_resident = {**place(data.train.resident), **shared}
        self.test_resident = {**place(data.test.resident), **shared}
        self.jitted = {
            "training": self.devices.compile(many(train_step)),
            "evaluation": self.devices.compile(evaluate, donate=False),
        }
        self.programs: dict[tuple[str, int], Any] = {
            (name, self.steps_per_call): self._lower(name, self.steps_per_call)
            for name in self.jitted
        }

    def _lower(self, name: str, steps: int) -> jax.stages.Lowered:
        state, resident, pipeline = {
            "training": (self.state, self.train_resident, self.data.train),
            "evaluation": (
                self.state.eval_variables, self.test_resident, self.data.test
            ),
        }[name]  # fmt: skip
        feeds = self._padded(pipeline.example(), steps)
        return self.jitted[name].lower(state, resident, feeds, 1)

    def _compiled(self, name: str, steps: range) -> Callable:
        key = name, self._length(steps)
        program = self.programs.get(key) or self._lower(*key)
        if isinstance(program, jax.stages.Lowered):
            started = time.perf_counter()
            program = self.programs[key] = program.compile()
            release_memory()
            seconds = time.perf_counter() - started
            logger.info("compiled the %s program in %.1f s", name, seconds)
        return program

    def _restore(self, fresh: TrainState) -> None:
        self.checkpoints = Checkpoints(self.workdir, self.config.keep)
        self.step, self.images, self.seconds_before = 0, 0, 0.0
        self.pending = []
        self.sums = dict.fromkeys((*SUMS, "seconds", "waited"), 0.0)
        restored = self.checkpoints.restore(fresh, self.devices.replicated)
        if restored:
            state, progress = restored
            self.step = int(state.step)
            self.sums |= progress["sums"]
            self.seconds_before = progress["seconds"]
            self.images = int(self.sums["count"])
            self.state = self.devices.replicate(state)

    def _greet(self) -> None:
        logger.info(
            "%s on %s: %s training, %s test images, %d classes",
            self.config.model.name, self.config.data.name,
            f"{self.data.train_examples:,}", f"{self.data.test_examples:,}",
            len(self.data.classes),
        )  # fmt: skip
        logger.info(
            "%d steps of %d images on %d %s device(s) by %s, %s; jax %s; workdir %s",
            self.total, self.config.batch_size, jax.device_count(),
            jax.default_backend(), self.config.parallel, self.config.precision,
            jax.__version__, shown(self.workdir),
        )  # fmt: skip
        cache = use_compilation_cache()
        if cache:
            logger.info("compiled programs are kept in %s", shown(cache))
        for line in self.report if not self.step else ():
            logger.info(line)
        if self.step:
            finished = self.step == self.total
            logger.info("%s step %d", "finished at" if finished else "continuing from",
                        self.step)  # fmt: skip

    def _next_stop(self) -> int:
        """The next step after which something is due."""
        due = [
            math.ceil((self._times(what, self.step) + 1) * every)
            for what, every in self.every.items()
        ]
        return min(self.total, *due)

    def _due(self, what: str) -> bool:
        """Has one of the event's times come with this step?"""
        if self.step == 0:  # a signal came before the first one
            return False
        now, before = self._times(what, self.step), self._times(what, self.step - 1)
        return now > before or self.step == self.total

    def _times(self, what: str, step: int) -> int:
        """How often the event has come by then; its period need not be whole."""
        return math.floor(Fraction(step) / self.every[what])

    def _stopped(self) -> bool:
        """Was a signal received? Several processes agree on it, now and then."""
        if jax.process_count() == 1:
            return self.signalled()
        calls = self.step // self.steps_per_call
        return calls % CALLS_PER_VOTE == 0 and any_process(self.signalled())

    def _calls(self, start: int, stop: int) -> Iterator[range]:
        """The steps of each call."""
        while start < stop:
            count = min(self.steps_per_call, stop - start)
            if self.whole and count < self.steps_per_call:
                count = 1
            yield range(start, start + count)
            start += count

    def _length(self, steps: range) -> int:
        """How many steps the call's feeds have."""
        return len(steps) if self.whole else self.steps_per_call

    def _feeds(self, pipeline: Any, steps: range) -> Any:
        return self._padded(pipeline.feeds(steps), self._length(steps))

    def _padded(self, feeds: dict[str, np.ndarray], length: int) -> Any:
        missing = length - len(next(iter(feeds.values())))
        if missing:
            feeds = {k: np.concatenate([x, np.repeat(x[-1:], missing, 0)])
                     for k, x in feeds.items()}  # fmt: skip
        return self.devices.shard(feeds)

    def _fetch(self, pending: list[dict]) -> dict[str, float]:
        """Sums of metrics that are still on the device."""
        fetched = jax.device_get(self.devices.local(pending))
        return {key: float(sum(float(m[key]) for m in fetched)) for key in SUMS}

    def _collect(self) -> None:
        """Fetches the metrics of the steps done; stops at a loss that is not finite."""
        started = time.perf_counter()
        for key, value in self._fetch(self.pending).items():
            self.sums[key] += value
        self.sums["seconds"] += time.perf_counter() - started
        self.pending = []
        if not math.isfinite(self.sums["loss"]):
            raise self._diverged("loss is")

    def _diverged(self, what: str) -> DivergedError:
        good = self.checkpoints.latest
        return DivergedError(
            f"the {what} not finite by step {self.step}; "
            + (f"the last good checkpoint is of step {good}; " if good else "")
            + f"try a lower config.optim.lr than {self.config.optim.lr:g}, "
            "a config.optim.warmup or config.optim.clip=1.0",
            self.step,
        )

    def _log_training(self) -> None:
        self._collect()
        self._row("train", self.sums)
        self.sums, self.images = dict.fromkeys(self.sums, 0.0), 0

    def _row(self, split: str, sums: dict[str, float]) -> dict:
        speed, wait = (sums[key] / sums["seconds"] for key in ("count", "waited"))
        epoch = self.step * self.config.batch_size / self.data.train_examples
        loss, accuracy = (sums[key] / sums["count"] for key in ("loss", "correct"))
        logger.info(
            "epoch %-7.4g step %-6d %-5s loss %.4f  accuracy %6.2f %%  %7.0f images/s"
            "%s", epoch, self.step, split, loss, 100 * accuracy, speed,
            f", {wait:.0%} of the time waiting for data" if wait >= 0.05 else "",
        )  # fmt: skip
        return self.log.row(
            step=self.step, epoch=round(epoch, 4), split=split, loss=loss,
            accuracy=accuracy, images_per_second=round(speed, 1),
            seconds=round(self._seconds(), 2), data_wait=round(wait, 4),
        )  # fmt: skip

    def _seconds(self) -> float:
        return self.seconds_before + time.perf_counter() - self.log.started


@jax.jit
def all_finite(tree: Any) -> jax.Array:
    """Is every number of the tree finite?"""
    return jnp.all(jnp.array([jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]))


@contextlib.contextmanager
def clear_memory_errors() -> Iterator[None]:
    """Says in one line that the batch does not fit."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise FlaxcnnError(
            "out of memory; lower config.batch_size, raise config.grad_accum, or say "
            "config.data.pipeline=host for a large data set"
        ) from error
