"""A contender's own process: asleep unless it is called."""

import importlib
import math
import multiprocessing
import os
import resource
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.benchmark import (
    Benchmark,
    Contender,
    Effort,
    OutOfTime,
    Setup,
    Unavailable,
)
from benchmarks.suites import CONTENDERS, SMOKE
from flaxcnn import FlaxcnnError

_running: Contender


class Worker:
    """A process with an environment of its own, that runs functions one by one."""

    def __init__(self, environment: dict[str, str]):
        spawn = multiprocessing.get_context("spawn")
        self.pipe, theirs = spawn.Pipe()
        self.process = spawn.Process(target=serve, args=(theirs, environment))
        self.process.start()
        theirs.close()

    def call(self, deadline: float, function: Callable, *args: Any) -> Any:
        """function(*args) in the process, which is given up at the deadline.

        Raises:
          OutOfTime: the deadline.
          Unavailable: what it raised, or the end of the process.
        """
        self.pipe.send((function, args))
        left = None if math.isinf(deadline) else max(1.0, deadline - time.monotonic())
        if not self.pipe.poll(left):
            raise OutOfTime
        try:
            value, problem = self.pipe.recv()
        except EOFError:
            raise Unavailable("its process died; out of memory?") from None
        if problem:
            raise Unavailable(problem)
        return value

    def close(self) -> None:
        self.process.kill()
        self.process.join()


def serve(pipe: Any, environment: dict[str, str]) -> None:
    """The process's whole life."""
    os.environ.update(environment)
    while True:
        try:
            function, args = pipe.recv()
        except EOFError:  # the runner is gone
            return
        try:
            pipe.send((function(*args), ""))
        except (Unavailable, FlaxcnnError) as error:
            pipe.send((None, str(error)))
        except Exception as error:
            traceback.print_exc()
            lines = str(error).split("\n")  # the cause is in the first or in the last
            text = " ... ".join(line[:150] for line in dict.fromkeys(
                [lines[0], lines[-1]]) if line)  # fmt: skip
            pipe.send((None, f"{type(error).__name__}: {text}"))


def draw_weights(bench: Benchmark, folder: Path) -> int:
    """Weights for all contenders, into the folder; returns their number."""
    from benchmarks.ours import save_weights  # not in the peers' processes

    return save_weights(bench, folder)


def roofline(bench: Benchmark, rate: float, bandwidth: float) -> float:
    """As `benchmarks.roofline.images_per_second`."""
    from benchmarks.roofline import images_per_second

    return images_per_second(bench, rate, bandwidth)


def build(setup: Setup) -> Contender:
    """The contender of its module."""
    module = importlib.import_module(CONTENDERS[setup.contender])
    kind = "train" if setup.bench.fresh else setup.bench.kind
    return getattr(module, kind)(setup)


def device(setup: Setup) -> str:
    """What the contender's library computes on: "cpu", "gpu" (jax) or "cuda"."""
    module = importlib.import_module(CONTENDERS[setup.contender])
    if hasattr(module, "jax"):
        return module.jax.default_backend()
    return "cuda" if module.torch.cuda.is_available() else "cpu"


def start(setup: Setup) -> None:
    """Builds and compiles what `measure` measures."""
    global _running
    _running = build(setup)
    measure(SMOKE)


def measure(effort: Effort) -> list[float]:
    """Images a second of each window, after a warm-up that also sets their length."""
    if _running.windows:
        return _running.windows(effort)
    first = math.ceil(effort.warmup / _running.steps)
    a_call = seconds(first) / first
    calls = math.ceil(max(effort.steps / _running.steps, effort.seconds / a_call))
    return [
        calls * _running.images / seconds(calls) for _ in range(effort.windows)
    ]  # fmt: skip


def seconds(calls: int) -> float:
    """The time of some calls, synchronised only at the edges."""
    started = time.perf_counter()
    for _ in range(calls):
        _running.step()
    last = _running.wait()
    elapsed = time.perf_counter() - started
    if not math.isfinite(last):
        raise FlaxcnnError(f"the loss is {last}: no training is being measured")
    return elapsed


def first_step(setup: Setup) -> None:
    """What `first_step` times, from the start of the process."""
    run(setup, steps=1)


def run(setup: Setup, steps: int) -> None:
    """Builds a contender and waits for each of its first steps."""
    contender = build(setup)
    for _ in range(steps):
        contender.step()
        contender.wait()


def memory(setup: Setup) -> float:
    """MiB at the peak of two training steps: of the GPU, else of the process.

    PyTorch makes its momentum at the end of the first.
    """
    run(setup, steps=2)
    module = importlib.import_module(CONTENDERS[setup.contender])
    on_gpu = module.gpu_peak()
    # The process's own peak counts from its parent's size, which is far smaller.
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return on_gpu / 2**20 if on_gpu else kib / 2**10
