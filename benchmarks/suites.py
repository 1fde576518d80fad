"""What is measured, of whom, and what a contender's module has to offer."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

# The recipe of every contender. L2 on kernels only, added to the gradient.
LEARNING_RATE = 0.01
MOMENTUM = 0.9
WEIGHT_DECAY = 1e-3

CONTENDERS = {
    "flaxcnn": "benchmarks.ours",
    "flax_linen": "benchmarks.peers.flax_linen",
    "torch_eager": "benchmarks.peers.torch_eager",
}

Weights = dict[str, np.ndarray]  # {"params/conv1/kernel": ...}, as flax lays them out


@dataclass(frozen=True)
class Benchmark:
    """One net in one mode.

    Attributes:
      net: a registered name of flaxcnn and a key of the `NETS` of every peer.
      mode: the function of the contenders' modules that builds it; "train" is
        `train(bench, weights, images, labels, dropout) -> Contender`.
      batch: images a step.
      classes: number of classes.
      contenders: keys of CONTENDERS; ratios are of the first to each other one.
    """

    net: str
    mode: str
    batch: int
    classes: int
    contenders: tuple[str, ...]


class Contender(NamedTuple):
    """A net with its batch, ready to step.

    Attributes:
      step: does one step; need not wait for it.
      loss: waits for the last step and returns its mean loss.
      params: number of parameters.
      threads: that compute.
    """

    step: Callable[[], None]
    loss: Callable[[], float]
    params: int
    threads: int


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    Attributes:
      warmup: steps before each round, at least 1.
      windows: timed windows a round; the round's value is their median.
      seconds: shortest window.
      steps: fewest steps of a window.
    """

    warmup: int
    windows: int
    seconds: float
    steps: int


FULL = Effort(warmup=3, windows=3, seconds=3.0, steps=3)
SMOKE = Effort(warmup=1, windows=1, seconds=0.0, steps=2)

SUITES = {
    "cpu": {
        "allcnn_c_train": Benchmark(
            "allcnn_c", "train", 128, 10, ("flaxcnn", "flax_linen", "torch_eager")
        ),
    },
}


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
