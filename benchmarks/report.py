"""Statistics, the tables, and what the numbers depend on."""

import json
import os
import platform
import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.benchmark import cores
from benchmarks.goals import Verdict, verdicts
from flaxcnn import FlaxcnnError

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
PEERS = ("torch", "torchvision")  # without them the others are measured

Rounds = list[dict[str, list[float]]]


def environment() -> dict[str, Any]:
    """Hardware and versions; FlaxcnnError if a package is missing."""
    versions = {"python": platform.python_version()}
    for package in (*PACKAGES, *PEERS):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            if package in PEERS:
                continue
            raise FlaxcnnError(
                f"the benchmarks need {package}; pip install -e '.[test]'"
            ) from None
    for found in metadata.distributions():
        if re.match("nvidia-cudnn|nvidia-cuda-runtime|jax-cuda", found.name or ""):
            versions[found.name] = found.version
    return {
        "cpu": cpu_model(),
        "gpu": gpu_state(),
        "cores": cores(),
        "load_average": os.getloadavg()[0],  # of the minute before
        "versions": versions,
        "commit": commit(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def commit() -> str:
    """Of the code that is measured, with "-dirty" if it was changed; "" outside git."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parents[1]), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, check=True
        ).stdout

    try:
        found = git("rev-parse", "--short=12", "HEAD").strip()
        changed = git("status", "--porcelain", "-uno", ":!results")
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f"{found}-dirty" if changed else found


def cpu_model() -> str:
    """The name of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.processor()


def gpu_state() -> str:
    """Name, driver, power and clock as nvidia-smi says them; "" without a GPU."""
    if not shutil.which("nvidia-smi"):
        return ""
    asked = "--query-gpu=name,driver_version,power.draw,clocks.sm"
    command = ["nvidia-smi", asked, "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def summarize(rounds: Rounds) -> dict[str, Any]:
    """The value of each contender, and ratios of the first to each other one.

    Args:
      rounds: of each, {contender: the value of every window}.
    """
    values = {name: [median(row[name]) for row in rounds] for name in rounds[0]}
    (_, ours), *peers = values.items()
    # Neighbours in time are compared: slow drifts of the machine cancel.
    ratios = {
        name: [a / b for a, b in zip(ours, theirs, strict=True)]
        for name, theirs in peers
    }
    return {
        "values": {name: spread(x) for name, x in values.items()},
        "ratios": {name: spread(x) for name, x in ratios.items()},
    }


def spread(values: list[float]) -> dict[str, Any]:
    """Median, extremes, and the values of the rounds."""
    return {
        "median": median(values),
        "min": min(values),
        "max": max(values),
        "rounds": values,
    }


def table(result: dict[str, Any]) -> str:
    """The Markdown table of one row's contenders."""
    values, ratios = result["values"], result["ratios"]
    first = next(iter(values))
    lines = [
        f"| contender | {result['unit']} | min-max | {first} / contender | min-max |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, value in values.items():
        ratio = numbers(ratios[name]) if name in ratios else ["", ""]
        lines.append(f"| {' | '.join([name, *numbers(value), *ratio])} |")
    for name, reason in result["unavailable"].items():
        lines.append(f"| {name} | unavailable: {reason} | | | |")
    if result.get("roofline"):
        lines.append(f"| roofline | {result['roofline']:.0f} | | | |")
    return "\n".join(lines)


def goal_table(lines: list[Verdict]) -> str:
    """The Markdown table of the goals."""
    rows = [
        "| row | what | measured | min-max | goal | met |",
        "|---|---|--:|--:|--:|---|",
    ]
    for title, what, value, goal, met in lines:
        measured = numbers(value) if value else ["", ""]
        bound = f"{goal.sign} {goal.bound:,.4g}" if goal.bound < 1e4 else (
            f"{goal.sign} {goal.bound:,.0f}")  # fmt: skip
        word = {True: "yes", False: "**no**", None: "not measured"}[met]
        rows.append(f"| {' | '.join([title, what, *measured, bound, word])} |")
    return "\n".join(rows)


def numbers(values: dict[str, Any]) -> list[str]:
    """The two cells of a spread, to three digits."""
    digits = max(0, 2 - int(f"{values['median']:e}".partition("e")[2]))
    low, high = (f"{values[key]:.{digits}f}" for key in ("min", "max"))
    return [f"{values['median']:.{digits}f}", f"{low}-{high}"]


def read(path: Path) -> dict[str, Any]:
    """The results of a suite so far, by row.

    Raises:
      FlaxcnnError: the file is no such file.
    """
    if not path.exists():
        return {}
    try:
        rows = json.loads(path.read_text())["benchmarks"]
        return {name: row for name, row in rows.items() if "date" in row}
    except (ValueError, KeyError, AttributeError, TypeError):
        raise FlaxcnnError(
            f"{path} holds no results of benchmarks; move it away or give another --out"
        ) from None


def read_attempts(path: Path) -> dict[str, str]:
    """The dates of the last vain attempts at rows of that file."""
    return json.loads(path.read_text()).get("attempts", {}) if path.exists() else {}


def write(
    path: Path, suite: str, rows: dict[str, Any], attempts: dict[str, str]
) -> None:
    """All results of a suite, as JSON and beside it as Markdown."""
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"suite": suite, "benchmarks": rows, "attempts": attempts}
    path.write_text(json.dumps(document, indent=1) + "\n")
    path.with_suffix(".md").write_text(markdown(suite, rows))


def markdown(suite: str, rows: dict[str, Any]) -> str:
    """The goals, then a table for each row with what it depends on."""
    parts = [f"# Benchmarks: {suite}", goal_table(verdicts(suite, rows))]
    for name, row in rows.items():
        versions = ", ".join(f"{k} {v}" for k, v in row["versions"].items())
        where = row["gpu"] or f"{row['cores']} cores of {row['cpu']}"
        parts += [
            f"## {name}",
            f"{row['kind']} {row['net']}, batch {row['batch']}, {row['dtype']}, "
            f"{len(row['rounds'])} rounds; {row['date']}, {where}; {versions}; "
            f"`{row['command']}`",
            table(row),
        ]
    return "\n\n".join(parts) + "\n"
