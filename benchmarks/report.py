"""Statistics, the table, and what the numbers depend on."""

import os
import platform
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.suites import cores
from flaxcnn import FlaxcnnError

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch")

Rounds = list[dict[str, list[float]]]


def environment() -> dict[str, Any]:
    """Hardware and versions; FlaxcnnError if a package is missing."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            raise FlaxcnnError(
                f"the benchmarks need {package}; pip install -e '.[test]'"
            ) from None
    return {
        "cpu": cpu_model(),
        "cores": cores(),
        "load_average": os.getloadavg()[0],  # of the minute before
        "versions": versions,
    }


def cpu_model() -> str:
    """The name of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.processor()


def summarize(rounds: Rounds) -> dict[str, Any]:
    """Images a second of each contender, and ratios of the first to each other one.

    Args:
      rounds: of each, {contender: images a second of every window}.
    """
    values = {name: [median(row[name]) for row in rounds] for name in rounds[0]}
    (_, ours), *peers = values.items()
    # Neighbours in time are compared: slow drifts of the machine cancel.
    ratios = {
        name: [a / b for a, b in zip(ours, theirs, strict=True)]
        for name, theirs in peers
    }
    return {
        "images_per_second": {name: spread(x) for name, x in values.items()},
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
    """The Markdown table of one benchmark's result."""
    speeds, ratios = result["images_per_second"], result["ratios"]
    first = next(iter(speeds))
    lines = [
        f"| contender | images/s | min-max | {first} / contender | min-max |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, speed in speeds.items():
        ratio = numbers(ratios[name], 2) if name in ratios else ["", ""]
        lines.append(f"| {' | '.join([name, *numbers(speed, 1), *ratio])} |")
    return "\n".join(lines)


def numbers(values: dict[str, Any], digits: int) -> list[str]:
    """The two cells of a spread."""
    low, high = (f"{values[key]:.{digits}f}" for key in ("min", "max"))
    return [f"{values['median']:.{digits}f}", f"{low}-{high}"]
