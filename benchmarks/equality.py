"""Do the contenders compute the same thing?"""

import dataclasses
from typing import NamedTuple

import numpy as np

from benchmarks.benchmark import Setup
from benchmarks.worker import build
from flaxcnn import FlaxcnnError

# Of the largest value. Of losses a missing L2 makes 7e-5, rounding 2e-7.
TOLERANCE = {"train": 2e-5, "infer": 1e-4, "augment": 1e-2}


class Evidence(NamedTuple):
    """What has to be equal.

    Attributes:
      params: number of parameters.
      values: the losses of three training steps, without dropout (the first compares
        the nets, the later ones gradients and optimizers too), the logits, or
        statistics of augmented images.
    """

    params: int
    values: list[float]


def evidence(setup: Setup) -> Evidence:
    """The evidence of a contender; runs in its process."""
    batch = 8 if setup.bench.kind == "train" else setup.bench.batch
    bench = dataclasses.replace(setup.bench, batch=batch, dtype="float32")
    setup = setup._replace(bench=bench, exact=True)
    found = _values(setup)
    if setup.contender == "flaxcnn_deterministic" and _values(setup) != found:
        raise FlaxcnnError("two runs of flaxcnn_deterministic have other losses")
    return found


def _values(setup: Setup) -> Evidence:
    contender = build(setup)
    values = []
    for _ in range(3 if setup.bench.kind == "train" else 1):
        contender.step()
        values.append(contender.wait())
    if contender.outputs:
        values = contender.outputs()
    return Evidence(contender.params, values)


def require_equal(kind: str, found: dict[str, Evidence], params: int) -> None:
    """Raises FlaxcnnError unless all have `params` parameters and the same values."""
    for name, (count, _) in found.items():
        if count != params:
            raise FlaxcnnError(f"{name} has {count:,} parameters instead of {params:,}")
    (reference, (_, ours)), *others = found.items()
    scale = np.abs(ours).max()
    for name, (_, theirs) in others:
        if not np.allclose(theirs, ours, rtol=0, atol=TOLERANCE[kind] * scale):
            what = "losses" if kind == "train" else "results"
            raise FlaxcnnError(
                f"{name} has the {what} {theirs[:4]}, {reference} {ours[:4]}, from the "
                "same weights and images; they are not the same net or optimizer"
            )
