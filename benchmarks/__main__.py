"""Measures a suite: python -m benchmarks --suite cpu

Nothing else may run on the machine meanwhile. See benchmarks/README.md.
"""

import argparse
import datetime
import math
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.benchmark import Benchmark, OutOfTime
from benchmarks.goals import verdicts
from benchmarks.race import run, say
from benchmarks.suites import EFFORTS, SMOKE, SUITES, smoke
from flaxcnn import FlaxcnnError
from flaxcnn.errors import unknown

SHORTEST = 60.0  # seconds that a row which was never measured may need


def main(argv: list[str]) -> None:
    """Measures the rows that the arguments select, those missing or oldest first."""
    args = parse(argv)
    rows = select(args.suite, args.only)
    rows = smoke(rows) if args.smoke else rows
    effort = SMOKE if args.smoke else EFFORTS[args.suite]
    out = args.out or Path("results/benchmarks") / f"{args.suite}.json"
    keep = args.out or not args.smoke
    results = report.read(out) if keep else {}
    attempts = report.read_attempts(out) if keep else {}
    deadline = time.monotonic() + args.time_limit
    command = shlex.join(["python", "-m", "benchmarks", *argv])
    left, failed = [], []
    for name in in_turn(rows, results, attempts):
        needed = results.get(name, {}).get("seconds", SHORTEST)
        if time.monotonic() + needed > deadline:
            left.append(name)
            continue
        found = report.environment()
        if found["load_average"] > 0.5:
            say(f"load average {found['load_average']:.1f}: is something else running?")
        started, date = time.monotonic(), datetime.datetime.now(datetime.UTC)
        say(f"{name}:")
        ceilings = ceilings_of(found["gpu"], results)
        attempts[name] = date.isoformat(timespec="seconds")
        try:
            result = run(
                args.suite, rows[name], effort, args.rounds, deadline, ceilings
            )
        except OutOfTime:
            left.append(name)
        except FlaxcnnError as error:
            say(f"{name} failed: {error}")
            failed.append(f"{name}: {error}")
        else:
            results[name] = {
                "date": attempts.pop(name), "command": command,
                "smoke": args.smoke, "seconds": round(time.monotonic() - started, 1),
                **found, **result,
            }  # fmt: skip
            rounds = len(result["rounds"])
            print(f"\n{name}: batch {rows[name].batch}, rounds: {rounds}\n")
            print(report.table(results[name]), flush=True)
        results = {row: results[row] for row in SUITES[args.suite] if row in results}
        if keep:
            report.write(out, args.suite, results, attempts)
    print(f"\n{report.goal_table(verdicts(args.suite, results))}")
    if left:
        say(f"left by --time-limit, for the next call: {', '.join(left)}")
    if failed:
        raise FlaxcnnError("; ".join(failed))


def parse(argv: list[str]) -> argparse.Namespace:
    """The arguments, checked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--suite", required=True, help=", ".join(SUITES))
    parser.add_argument("--only", nargs="+", metavar="NAME", help="rows of the suite")
    parser.add_argument("--rounds", type=int, help="default: 3; with --smoke 2")
    parser.add_argument(
        "--time-limit", type=float, default=math.inf, metavar="S",
        help="end by then; the next call begins with what is left",
    )  # fmt: skip
    parser.add_argument("--smoke", action="store_true", help="does it run at all?")
    parser.add_argument(
        "--out", type=Path,
        help="default: results/benchmarks/<suite>.json; with --smoke none",
    )  # fmt: skip
    args = parser.parse_args(argv)
    if args.rounds is None:
        args.rounds = 2 if args.smoke else 3
    if args.rounds < 1:
        raise FlaxcnnError(f"--rounds {args.rounds}; it must be at least 1")
    if not args.time_limit > 0:
        raise FlaxcnnError(f"--time-limit {args.time_limit:g}; it must be above 0")
    return args


def select(suite: str, only: list[str] | None) -> dict[str, Benchmark]:
    """The rows of a suite by name; FlaxcnnError for a name that is none."""
    if suite not in SUITES:
        raise unknown("suite", suite, SUITES)
    for name in only or []:
        if name not in SUITES[suite]:
            raise unknown("benchmark", name, SUITES[suite])
    return {name: SUITES[suite][name] for name in only or SUITES[suite]}


def ceilings_of(gpu: str, results: dict[str, Any]) -> dict[str, Any]:
    """Those that were measured on the same card; `gpu` as `report.gpu_state`."""
    result = results.get("ceilings", {"gpu": "", "values": {}})
    same = result["gpu"].partition(",")[0] == gpu.partition(",")[0]
    return result["values"] if same else {}


def in_turn(
    rows: dict[str, Benchmark], results: dict[str, Any], attempts: dict[str, str]
) -> list[str]:
    """Rows never tried, then the others from the oldest result or attempt on."""
    dates = {name: result["date"] for name, result in results.items()} | attempts
    return sorted(rows, key=lambda name: dates.get(name, ""))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except FlaxcnnError as error:
        sys.exit(f"error: {error}")
