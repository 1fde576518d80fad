"""What runs in a contender's own process; it sleeps in between."""

import importlib
import math
import time

import numpy as np

from benchmarks.suites import CONTENDERS, Benchmark, Contender, Effort, Weights
from flaxcnn import FlaxcnnError, model_info

_running: Contender


def fresh_weights(bench: Benchmark) -> Weights:
    """Weights for all contenders; runs in our process."""
    from benchmarks.ours import fresh_weights  # not in the peers' processes

    return fresh_weights(bench)


def build(name: str, bench: Benchmark, weights: Weights, dropout: bool) -> Contender:
    """The contender with a random batch, the same for all."""
    rng = np.random.default_rng(0)
    shape = (bench.batch, *model_info(bench.net).input_size)
    images = rng.standard_normal(shape, np.float32)
    labels = rng.integers(bench.classes, size=bench.batch)
    module = importlib.import_module(CONTENDERS[name])
    return getattr(module, bench.mode)(bench, weights, images, labels, dropout)


def start(name: str, bench: Benchmark, weights: Weights) -> int:
    """Builds and compiles what `measure` measures; returns its number of threads."""
    global _running
    _running = build(name, bench, weights, dropout=True)
    seconds(1)
    return _running.threads


def measure(effort: Effort) -> list[float]:
    """Steps a second of each window, after a warm-up that also sets their length."""
    a_step = seconds(effort.warmup) / effort.warmup
    steps = max(effort.steps, math.ceil(effort.seconds / a_step))
    return [steps / seconds(steps) for _ in range(effort.windows)]


def seconds(steps: int) -> float:
    """The time of some steps, synchronised only at the edges."""
    started = time.perf_counter()
    for _ in range(steps):
        _running.step()
    loss = _running.loss()  # waits
    elapsed = time.perf_counter() - started
    if not math.isfinite(loss):
        raise FlaxcnnError(f"the loss is {loss}: no training is being measured")
    return elapsed
