"""What a benchmark is, and what a contender's module has to offer."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple


class Goal(NamedTuple):
    """A bound on the first contender's value or on its ratio to peers.

    Attributes:
      sign: ">=" or "<=".
      bound: of the ratio to the best of `against`, as far as they are available.
      against: contenders; none: the bound is of the value itself.
      name: of the goal, as G1.
      roofline: the bound is of the value divided by the roofline's.
    """

    sign: str
    bound: float
    against: tuple[str, ...] = ()
    name: str = ""
    roofline: bool = False


class Mean(NamedTuple):
    """A goal of several rows: the geometric mean of their ratios."""

    title: str
    rows: tuple[str, ...]
    goal: Goal


@dataclass(frozen=True)
class Benchmark:
    """A row: what is measured, of whom.

    Attributes:
      kind: the function of the contenders' modules that builds it (`train`, `infer`,
        `epoch`, `augment`, `jpeg`, `ceiling`), or `first_step` or `memory`, which
        measure processes of their own.
      net: a registered name of flaxcnn that every peer has.
      batch: images a step.
      contenders: keys of `suites.CONTENDERS`; ratios are of the first to each
        other one.
      goals: of this row.
      classes: number of classes.
      size: height and width of the images; width of the photographs of `jpeg`.
      dtype: "bfloat16" in the GPU suite, "float64" to compare training steps.
      cold: `first_step` or `memory` with an empty compilation cache.
    """

    kind: str
    net: str
    batch: int
    contenders: tuple[str, ...]
    goals: tuple[Goal, ...] = ()
    classes: int = 10
    size: int = 32
    dtype: str = "float32"
    cold: bool = False

    @property
    def unit(self) -> str:
        units = {
            "memory": "MiB", "first_step": "s", "ceiling": "T/s",
            "jpeg": "images/s/core",
        }  # fmt: skip
        return units.get(self.kind, "images/s")

    @property
    def fresh(self) -> bool:
        """Does every measurement need a new process?"""
        return self.kind in ("memory", "first_step")


class Setup(NamedTuple):
    """What a contender is built of.

    Attributes:
      contender: its name.
      weights: folder with flax.safetensors and torch.safetensors; None: fresh ones.
      exact: to compare, not to measure: no dropout, full precision, eager.
    """

    bench: Benchmark
    contender: str
    weights: Path | None
    exact: bool = False


class Contender(NamedTuple):
    """A net with its batch, ready to step.

    Attributes:
      step: does one step, or several in one call; need not wait for it.
      wait: waits for the last step; returns a number that is finite if all is well.
      params: number of parameters.
      images: of a call; operations or bytes, in units of 1e12, of a ceiling.
      outputs: of the last step, to compare; None: what `wait` returns.
      windows: measures by itself: images a second of each window.
      steps: of training that a call of `step` takes.
    """

    step: Callable[[], None]
    wait: Callable[[], float]
    params: int
    images: float
    outputs: Callable[[], list[float]] | None = None
    windows: "Callable[[Effort], list[float]] | None" = None
    steps: int = 1


class Unavailable(Exception):
    """A peer that cannot run here; the message says why."""


class OutOfTime(Exception):
    """The deadline of --time-limit has come."""


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    Attributes:
      warmup: steps before each round, at least 1; whole calls.
      windows: timed windows a round; the round's value is their median.
      seconds: shortest window.
      steps: fewest steps of a window.
    """

    warmup: int
    windows: int
    seconds: float
    steps: int


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
