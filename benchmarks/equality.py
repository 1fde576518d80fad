"""Do the contenders compute the same thing?"""

import dataclasses
from typing import NamedTuple

import numpy as np

from benchmarks.benchmark import Benchmark, Setup
from benchmarks.worker import build
from flaxcnn import FlaxcnnError

# Of the values, relative to the largest; without L2 All-CNN-C's losses move by 7e-5.
TOLERANCES = {"train": 1e-6, "infer": 1e-4, "augment": 2e-2, "jpeg": 2e-2}


class Evidence(NamedTuple):
    """What has to be equal.

    Attributes:
      params: number of parameters.
      values: the losses of three training steps, without dropout (the first compares
        the nets, the later ones gradients and optimizers too) and in float64: BatchNorm
        over few and small maps makes percents of float32's rounding; the logits; or
        statistics of augmented images or of photographs.
    """

    params: int
    values: list[float]


def evidence(setup: Setup) -> Evidence:
    """The evidence of a contender; runs in its process."""
    if setup.contender == "flaxcnn_deterministic":  # as it is measured
        first, second = _values(setup), _values(setup)
        if first != second:
            raise FlaxcnnError("two runs of flaxcnn_deterministic have other losses")
    train = setup.bench.kind == "train"
    how: dict = {"batch": 8, "dtype": "float64"} if train else {"dtype": "float32"}
    bench = dataclasses.replace(setup.bench, **how)
    return _values(setup._replace(bench=bench, exact=True))


def _values(setup: Setup) -> Evidence:
    contender = build(setup)
    values = []
    for _ in range(3 if setup.bench.kind == "train" else 1):
        contender.step()
        values.append(contender.wait())
    if contender.outputs:
        values = contender.outputs()
    return Evidence(contender.params, values)


def require_equal(bench: Benchmark, found: dict[str, Evidence], params: int) -> None:
    """Raises FlaxcnnError unless all have `params` parameters and the same values."""
    for name, (count, _) in found.items():
        if count != params:
            raise FlaxcnnError(f"{name} has {count:,} parameters instead of {params:,}")
    (reference, (_, ours)), *others = found.items()
    allowed = np.abs(ours).max() * TOLERANCES[bench.kind]
    for name, (_, theirs) in others:
        if not (np.abs(np.subtract(theirs, ours)) <= allowed).all():
            what = "losses" if bench.kind == "train" else "results"
            raise FlaxcnnError(
                f"{name} has the {what} {theirs[:4]}, {reference} {ours[:4]}, from the "
                "same weights and images; they are not the same net or optimizer"
            )
