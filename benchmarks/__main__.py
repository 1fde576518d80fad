"""Measures a suite: python -m benchmarks --suite cpu

Nothing else may run on the machine meanwhile. See benchmarks/README.md.
"""

import argparse
import dataclasses
import datetime
import json
import multiprocessing
import os
import shlex
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.equality import evidence, require_equal
from benchmarks.suites import FULL, SMOKE, SUITES, Benchmark, Effort
from benchmarks.worker import fresh_weights, measure, start
from flaxcnn import FlaxcnnError, model_info
from flaxcnn.errors import unknown


def main(argv: list[str]) -> None:
    """Runs the benchmarks that the arguments select."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--suite", required=True, help=", ".join(SUITES))
    parser.add_argument("--only", nargs="+", metavar="NAME", help="of the suite")
    parser.add_argument("--rounds", type=int, help="default: 3; with --smoke 2")
    parser.add_argument(
        "--time-limit", type=float, default=float("inf"), metavar="S",
        help="begin no further round that would end later",
    )  # fmt: skip
    parser.add_argument("--smoke", action="store_true", help="does it run at all?")
    parser.add_argument(
        "--out", type=Path,
        help="default: results/benchmarks/<suite>.json; with --smoke none",
    )  # fmt: skip
    args = parser.parse_args(argv)
    rounds = (2 if args.smoke else 3) if args.rounds is None else args.rounds
    if rounds < 1:
        raise FlaxcnnError(f"--rounds {rounds}; it must be at least 1")
    benches = select(args.suite, args.only)
    deadline = time.monotonic() + args.time_limit
    document = {
        "suite": args.suite,
        "smoke": args.smoke,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", "benchmarks", *argv]),
        **report.environment(),
        "benchmarks": {},
    }
    if document["load_average"] > 0.5:
        say(f"load average {document['load_average']:.1f}: is something else running?")
    for name, bench in benches.items():
        if args.smoke:
            bench = dataclasses.replace(bench, batch=4)
        effort = SMOKE if args.smoke else FULL
        result = run(bench, effort, rounds, deadline)
        document["benchmarks"][name] = result
        print(f"\n{name}: batch {bench.batch}, rounds: {len(result['rounds'])}\n")
        print(report.table(result), flush=True)
    if not (args.smoke and args.out is None):
        out = args.out or Path("results/benchmarks") / f"{args.suite}.json"
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(document, indent=2) + "\n")


def select(suite: str, only: list[str] | None) -> dict[str, Benchmark]:
    """The benchmarks of a suite by name; FlaxcnnError for a name that is none."""
    if suite not in SUITES:
        raise unknown("suite", suite, SUITES)
    for name in only or []:
        if name not in SUITES[suite]:
            raise unknown("benchmark", name, SUITES[suite])
    return {name: SUITES[suite][name] for name in only or SUITES[suite]}


def run(
    bench: Benchmark, effort: Effort, rounds: int, deadline: float
) -> dict[str, Any]:
    """Measures one benchmark: A B C A B C ..., each contender in its own process.

    Every call waits for its result, so only one process works at a time.
    """
    spawn = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        pools = {
            name: stack.enter_context(ProcessPoolExecutor(1, spawn))
            for name in bench.contenders
        }
        weights = pools["flaxcnn"].submit(fresh_weights, bench).result()
        found, threads = {}, {}
        for name, pool in pools.items():
            say(f"{name}: checking, compiling")
            found[name] = pool.submit(evidence, name, bench, weights).result()
        require_equal(found, model_info(bench.net).params)
        for name, pool in pools.items():
            threads[name] = pool.submit(start, name, bench, weights).result()
        measured: report.Rounds = []
        for i in range(rounds):
            began = time.monotonic()
            measured.append({})
            for name, pool in pools.items():
                speeds = pool.submit(measure, effort).result()
                measured[-1][name] = [bench.batch * speed for speed in speeds]
                values = ", ".join(f"{x:.1f}" for x in measured[-1][name])
                say(f"round {i + 1} of {rounds}, {name}: {values} images/s")
            now = time.monotonic()
            if i + 1 < rounds and now + (now - began) > deadline:
                say(f"stopped after {i + 1} rounds by --time-limit")
                break
    return {
        **dataclasses.asdict(bench),
        "effort": dataclasses.asdict(effort),
        "check": {name: item._asdict() for name, item in found.items()},
        "threads": threads,
        "rounds": measured,
        **report.summarize(measured),
    }


def say(line: str) -> None:
    """Progress; the tables alone go to stdout."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"  # inherited by the contenders
    try:
        main(sys.argv[1:])
    except FlaxcnnError as error:
        sys.exit(f"error: {error}")
