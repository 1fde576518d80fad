"""One row: its contenders in turns, A B C A B C, each in a process of its own."""

import dataclasses
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import report, worker
from benchmarks.benchmark import Benchmark, Effort, OutOfTime, Setup, Unavailable
from benchmarks.equality import TOLERANCES, evidence, require_equal
from benchmarks.suites import ENVIRONMENT, SMOKE
from benchmarks.worker import Worker
from flaxcnn import FlaxcnnError

SUITE_ENVIRONMENT = {
    "cpu": {"JAX_PLATFORMS": "cpu"},
    "gpu": {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"},  # several share the GPU
}


class Race:
    """The measurement of one row.

    A peer that cannot run here is left out, with the reason. Of the first contender
    it is an error.
    """

    def __init__(
        self, suite: str, bench: Benchmark, deadline: float, smoke: bool = False
    ):
        self.suite, self.bench, self.deadline = suite, bench, deadline
        self.smoke = smoke
        self.running = list(bench.contenders)
        self.unavailable: dict[str, str] = {}
        self.devices: dict[str, str] = {}
        self.check: dict[str, Any] = {}
        self.seconds: dict[str, dict[str, float]] = {}  # of checking and compiling
        self.rounds: report.Rounds = []
        self.gpu: list[str] = []  # its power and clock after each round
        self.roofline: float | None = None

    def attempt(self, name: str, function: Any, *args: Any) -> Any:
        """function(*args); None, and no more of this contender, if it cannot."""
        try:
            return function(*args)
        except Unavailable as reason:
            if name == self.bench.contenders[0]:
                raise FlaxcnnError(f"{name}: {reason}") from None
            say(f"{name} is unavailable: {reason}")
            self.unavailable[name] = str(reason)
            self.running.remove(name)
            for done in self.rounds:
                done.pop(name, None)
            return None

    def environment(self, name: str) -> dict[str, str]:
        """Of the contender's process; its flags of XLA go behind the user's."""
        own = dict(ENVIRONMENT.get(name, {}))
        if "XLA_FLAGS" in own:
            own["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {own['XLA_FLAGS']}"
        return SUITE_ENVIRONMENT[self.suite] | own

    def prepare(
        self, workers: dict[str, Worker], folder: Path, ceilings: dict[str, Any]
    ) -> None:
        """Compares the contenders, then builds and compiles what is measured."""
        bench, first = self.bench, self.bench.contenders[0]
        ours = partial(self.attempt, first, workers[first].call, self.deadline)
        weights, params = None, 0
        if bench.kind in ("train", "infer"):
            weights = folder
            params = ours(worker.draw_weights, bench, folder)
        setups = {name: Setup(bench, name, weights) for name in self.running}

        def each(what: str, function: Any) -> dict[str, Any]:
            found = {}
            for name in list(self.running):
                say(f"{name}: {what}")
                call, setup = workers[name].call, setups[name]
                began = time.monotonic()
                found[name] = self.attempt(name, call, self.deadline, function, setup)
                seconds = self.seconds.setdefault(what, {})
                seconds[name] = round(time.monotonic() - began, 1)
            return {name: found[name] for name in self.running}

        for name, device in each("starting", worker.device).items():
            self.note(name, device)
        if bench.kind in TOLERANCES:
            self.check = each("checking", evidence)
            require_equal(bench, self.check, params)
        each("compiling", worker.start)
        if bench.kind == "train" and ceilings:
            peaks = [ceilings[name]["median"] for name in ("matmul", "copy")]
            self.roofline = ours(worker.roofline, bench, *peaks)

    def note(self, name: str, device: str) -> None:
        """Raises FlaxcnnError for the GPU suite on a CPU, if it is to be measured."""
        self.devices[name] = device
        if self.suite == "gpu" and device == "cpu" and not self.smoke:
            raise FlaxcnnError(f"{name} sees no GPU; install its CUDA version")

    def measure(self, rounds: int, turn: Any) -> None:
        """Whole rounds of turns, as many as end before the deadline.

        Raises:
          OutOfTime: not even one.
        """
        took = 0.0
        for i in range(rounds):
            began = time.monotonic()
            if began + took > self.deadline:
                break
            try:
                self.rounds.append(self.round(f"round {i + 1} of {rounds}", turn))
            except OutOfTime:
                break
            self.gpu.append(report.gpu_state())
            took = time.monotonic() - began
        if not self.rounds:
            raise OutOfTime
        if len(self.rounds) < rounds:
            say(f"stopped after {len(self.rounds)} rounds by --time-limit")

    def round(self, title: str, turn: Any) -> dict[str, list[float]]:
        """A turn of each contender."""
        found = {}
        for name in list(self.running):
            values = self.attempt(name, turn, name)
            if values is None:
                continue
            found[name] = values
            shown = ", ".join(f"{x:.4g}" for x in values)
            say(f"{title}, {name}: {shown} {self.bench.unit}")
        return found

    def result(self, effort: Effort) -> dict[str, Any]:
        return {
            **dataclasses.asdict(self.bench),
            "unit": self.bench.unit,
            "effort": dataclasses.asdict(effort),
            "check": {
                name: {"params": params, "values": values[:4]}
                for name, (params, values) in self.check.items()
            },
            "devices": self.devices,
            "unavailable": self.unavailable,
            "roofline": self.roofline,
            "preparation_seconds": self.seconds,
            "rounds": self.rounds,
            "gpu_after_rounds": self.gpu,
            **report.summarize(self.rounds),
        }


def run(
    suite: str, bench: Benchmark, effort: Effort, rounds: int, deadline: float,
    ceilings: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Measures one row; only one process works at a time.

    Raises:
      FlaxcnnError: we cannot run, or the contenders do not compute the same.
      OutOfTime: no round of all contenders has ended by the deadline.
    """
    race = Race(suite, bench, deadline, smoke=effort == SMOKE)
    with ExitStack() as stack:
        temporary = tempfile.TemporaryDirectory(prefix="flaxcnn-benchmark-")
        folder = Path(stack.enter_context(temporary))
        if bench.fresh:
            race.measure(rounds, Fresh(race, folder))
            return race.result(effort)
        workers = {name: Worker(race.environment(name)) for name in bench.contenders}
        for each in workers.values():
            stack.callback(each.close)
        race.prepare(workers, folder, ceilings)
        race.measure(
            rounds, lambda name: workers[name].call(deadline, worker.measure, effort)
        )
    return race.result(effort)


class Fresh:
    """Turns that are a whole new process each, from its start."""

    def __init__(self, race: Race, folder: Path):
        self.race, self.folder = race, folder
        self.count = 0
        if not race.bench.cold:
            for name in list(race.running):
                say(f"{name}: filling its cache")
                race.attempt(name, self, name)

    def __call__(self, name: str) -> list[float]:
        """Seconds to the first step, or MiB at the peak."""
        bench = self.race.bench
        self.count += 1
        cache = str(self.folder / (f"{name}{self.count}" if bench.cold else name))
        caches = {
            "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            "TORCHINDUCTOR_CACHE_DIR": cache,
        }
        environment = self.race.environment(name)
        started = time.perf_counter()
        process = Worker(environment | caches)
        function = worker.memory if bench.kind == "memory" else worker.first_step
        try:
            setup = Setup(bench, name, None)
            value = process.call(self.race.deadline, function, setup)
            elapsed = time.perf_counter() - started
            device = process.call(self.race.deadline, worker.device, setup)
            self.race.note(name, device)
        finally:
            process.close()
        return [elapsed if value is None else value]


def say(line: str) -> None:
    """Progress; the tables alone go to stdout."""
    print(line, file=sys.stderr, flush=True)
