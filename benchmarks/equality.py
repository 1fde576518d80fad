"""Do the contenders compute the same thing?"""

import dataclasses
from typing import NamedTuple

import numpy as np

from benchmarks.benchmark import Benchmark, Setup
from benchmarks.worker import build
from flaxcnn import FlaxcnnError

# Without BatchNorm: with it, over few and small maps, rounding grows from step to step.
PLAIN = ("allcnn_c", "nin", "vgg16_cifar", "vgg16")


def tolerances(bench: Benchmark) -> float | list[float]:
    """Of the values, relative to the largest.

    A missing L2 changes All-CNN-C's losses by 7e-5, rounding by 2e-7; on a GPU, where
    other algorithms round more, the CPU's check of the same recipe has to do.
    """
    if bench.kind != "train":
        return 1e-4 if bench.kind == "infer" else 2e-2
    first = 2e-5 if bench.dtype == "float32" else 1e-4
    later = first if bench.net in PLAIN else 100 * first
    return [first, later, later]


class Evidence(NamedTuple):
    """What has to be equal.

    Attributes:
      params: number of parameters.
      values: the losses of three training steps, without dropout (the first compares
        the nets, the later ones gradients and optimizers too), the logits, or
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
    batch = 8 if setup.bench.kind == "train" else setup.bench.batch
    bench = dataclasses.replace(setup.bench, batch=batch, dtype="float32")
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
    allowed = np.abs(ours).max() * np.array(tolerances(bench))
    for name, (_, theirs) in others:
        if not (np.abs(np.subtract(theirs, ours)) <= allowed).all():
            what = "losses" if bench.kind == "train" else "results"
            raise FlaxcnnError(
                f"{name} has the {what} {theirs[:4]}, {reference} {ours[:4]}, from the "
                "same weights and images; they are not the same net or optimizer"
            )
