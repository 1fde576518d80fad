"""Do the contenders compute the same thing?"""

import dataclasses
from typing import NamedTuple

import numpy as np

from benchmarks.suites import Benchmark, Weights
from benchmarks.worker import build
from flaxcnn import FlaxcnnError

TOLERANCE = 2e-5  # relative; a missing L2 makes 7e-5, rounding 2e-7


class Evidence(NamedTuple):
    """What has to be equal.

    Attributes:
      params: number of parameters.
      losses: of the first training steps, without dropout. The first compares the
        nets, the later ones gradients and optimizers too.
    """

    params: int
    losses: list[float]


def evidence(name: str, bench: Benchmark, weights: Weights) -> Evidence:
    """The evidence of a contender; runs in its process."""
    small = dataclasses.replace(bench, batch=8)
    contender = build(name, small, weights, dropout=False)
    losses = []
    for _ in range(3):
        contender.step()
        losses.append(contender.loss())
    return Evidence(contender.params, losses)


def require_equal(found: dict[str, Evidence], params: int) -> None:
    """Raises FlaxcnnError unless all have `params` parameters and the same losses."""
    for name, (count, _) in found.items():
        if count != params:
            raise FlaxcnnError(f"{name} has {count:,} parameters instead of {params:,}")
    (reference, (_, ours)), *others = found.items()
    for name, (_, theirs) in others:
        if not np.allclose(theirs, ours, rtol=TOLERANCE, atol=0):
            raise FlaxcnnError(
                f"{name} has the losses {theirs}, {reference} {ours}, from the same "
                "weights and images; they are not the same net or optimizer"
            )
