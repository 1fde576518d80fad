"""The runs of an experiment: which there are, and carrying them out in slices."""

import contextlib
import json
import os
import platform
import re
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from flaxcnn.data.builders import quiet_tfds
from flaxcnn.errors import DivergedError, FlaxcnnError, unknown
from flaxcnn.reproduce.experiment import Experiment, Row
from flaxcnn.train.config import load_config
from flaxcnn.train.loop import fit
from flaxcnn.train.workdir import FREE_KEYS, check_workdir, replace_file, shown


@dataclass(frozen=True)
class Run:
    """One training of a row.

    Attributes:
      row: of the experiment.
      seed: of the run.
      config: of the run.
      recipe: "whole", or how it differs from the row's.
      path: its workdir.
    """

    row: Row
    seed: int
    config: ConfigDict
    recipe: str
    path: Path

    @property
    def outcome(self) -> dict[str, Any] | None:
        """How it ended: {"diverged": step or None, "message", ...}; None: not yet."""
        path = self.path / "outcome.json"
        return json.loads(path.read_text()) if path.exists() else None


class Stopped(KeyboardInterrupt):
    """A signal or the time limit came; no `except Exception` is to take it."""


def plan(
    experiment: Experiment, workdir: Path, *, config: str = "",
    overrides: Mapping[str, str] | None = None, models: Sequence[str] = (),
    seeds: int = 1, epochs: float = 0, rates: Sequence[str] = (),
) -> list[Run]:  # fmt: skip
    """The runs of an experiment.

    Args:
      experiment: whose rows are trained.
      workdir: of the experiment; each run has a directory there.
      config: of rows that have none of their own.
      overrides: of every row's config, textual.
      models: names of the rows to train; none: all.
      seeds: how many runs of each.
      epochs: a length in place of the recipe's; its schedule is scaled with it.
      rates: learning rates in place of the recipe's, each of them is tried.

    Raises:
      FlaxcnnError: what does not fit the experiment, or a directory of other runs.
    """
    overrides = dict(overrides or {})
    names = [row.name for row in experiment.rows]
    for name in models:
        if name not in names:
            raise unknown("row", name, names)
    common = set.intersection(*({*row.overrides} for row in experiment.rows))
    for key in ("seed", *sorted(common)):
        if key in overrides:
            raise FlaxcnnError(f"config.{key} is the experiment's own; leave it out")
    if any(row.config for row in experiment.rows) == bool(config):
        raise FlaxcnnError(
            "the experiment has its own configs; leave out --config"
            if config
            else "the experiment has no config of its own; give one by --config"
        )
    runs = []
    for row in experiment.rows:
        if models and row.name not in models:
            continue
        for rate in rates or ("",):
            keys = {
                **overrides,
                **row.overrides,
                **({"optim.lr": rate} if rate else {}),
            }
            for seed in range(seeds):
                own = load_config(row.config or config, {**keys, "seed": str(seed)})
                # A config that is given on the command line is a recipe as it is.
                given = overrides if row.config else {}
                other = {k: v for k, v in given.items() if k not in row.overrides}
                if rate:
                    of = f" of {', '.join(rates)}" if len(rates) > 1 else ""
                    other["optim.lr"] = f"{own.optim.lr:g}{of}"
                recipe = _differences(own, other, epochs)
                if epochs:
                    scale(own, epochs)
                path = workdir / run_name(row.name, rate, seed)
                check_workdir(path, own)
                runs.append(Run(row, seed, own, recipe, path))
    return runs


def run_name(row: str, rate: str, seed: int) -> str:
    """Of a run's directory."""
    row = re.sub(r"[^\w.+-]+", "_", row).strip("_")
    return f"{row}-lr{rate}-{seed}" if rate else f"{row}-{seed}"


def _differences(
    config: ConfigDict, overrides: Mapping[str, str], epochs: float
) -> str:
    """In words, how a run differs from its recipe."""
    words = [f"{k}={v}" for k, v in overrides.items() if k not in FREE_KEYS]
    if epochs and epochs != config.epochs:
        kind = "shortened" if epochs < config.epochs else "lengthened"
        words.insert(0, f"{kind}: {epochs:g} of {config.epochs:g} epochs")
    return ", ".join(words) or "whole"


def scale(config: ConfigDict, epochs: float) -> None:
    """Makes a run that long, and the durations of its schedule in proportion."""
    if not config.epochs or config.steps or config.examples:
        raise FlaxcnnError("--epochs is for configs that are measured in epochs")
    factor = Fraction(str(epochs)) / Fraction(str(config.epochs))
    optim = config.optim
    with config.unlocked(), optim.ignore_type():
        optim.milestones = tuple(_times(factor, m) for m in optim.milestones)
        optim.warmup = _times(factor, optim.warmup)
        if optim.schedule == "exponential":
            optim.gamma **= float(1 / factor)
        config.epochs = float(epochs)


def _times(factor: Fraction, duration: float | str) -> str:
    number, _, unit = str(duration).partition(" ")
    return f"{float(Fraction(number) * factor)!r} {unit or 'epochs'}"


def carry_out(runs: Sequence[Run], time_limit: float = 0) -> bool:
    """Trains what has not been trained; a run that was interrupted continues.

    A run whose loss is not finite has diverged; the others go on.

    Args:
      runs: of an experiment.
      time_limit: seconds after which it saves and stops, as at SIGTERM; 0: none.

    Returns:
      Whether all of them have ended.
    """
    if any(run.config.data.name.startswith("tfds:") for run in runs):
        with quiet_tfds():  # interrupted in the middle, its import fails ever after
            pass
    try:
        with _stopping(time_limit):
            for run in runs:
                if not run.outcome:
                    print(f"{run.row.name}: {shown(run.path)}", flush=True)
                    _finish(run)
    except Stopped:
        return False
    return True


def _finish(run: Run) -> None:
    step, message = None, ""
    try:
        fit(run.config, run.path)
    except DivergedError as error:
        step, message = error.step, str(error)
        print(f"{run.row.name}: {error}", flush=True)
    outcome = {
        "diverged": step,
        "message": message,
        "date": time.strftime("%Y-%m-%d"),
        "hardware": hardware(),
        "versions": f"Python {platform.python_version()}; jax {jax.__version__}; "
        f"flax {version('flax')}",
    }
    replace_file(run.path / "outcome.json", json.dumps(outcome) + "\n")


@contextlib.contextmanager
def _stopping(time_limit: float) -> Iterator[None]:
    """SIGTERM, which also comes at the time limit, and Ctrl-C raise Stopped.

    But not while a run trains: there it saves first (`flaxcnn.train.signals`).
    """

    def stop(number: int, frame: Any) -> None:
        raise Stopped

    timer = threading.Timer(time_limit, os.kill, (os.getpid(), signal.SIGTERM))
    timer.daemon = True
    old = {s: signal.signal(s, stop) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        if time_limit:
            timer.start()
        yield
    finally:
        timer.cancel()
        for number, handler in old.items():
            signal.signal(number, handler)


def hardware() -> str:
    """What computes here."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return f"{jax.device_count()} x {device.device_kind}"
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    found = re.search(r"model name\s*: (.*)", text)
    name = found[1] if found else platform.processor() or platform.machine()
    return f"{os.cpu_count()} CPU cores, {name}"
