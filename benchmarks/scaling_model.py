"""Seconds of a training step on many GPUs, from counts: no GPU has run it.

A step is the device's own work, the all-reduce of the gradients, and under jit the
all-reduces of BatchNorm's statistics, one after another. docs/scaling.md says what is
counted and what is assumed.
"""

import math
from typing import Any, NamedTuple

from benchmarks.benchmark import Benchmark
from benchmarks.roofline import images_per_second

# Assumed. H100 SXM, by its data sheet, and one 400 Gb/s adapter a GPU.
RATE = 989.0  # 1e12 dense bfloat16 operations a second
BANDWIDTH = 3.35  # 1e12 bytes a second, memory
NVLINK = 450e9  # bytes a second, each way, of a GPU within its host
NETWORK = 50e9  # bytes a second, each way, of a GPU to other hosts
HOST = 8  # GPUs
# Assumed. Seconds of a collective without data: start, and each level of its tree.
START, LOCAL_HOP, NETWORK_HOP = 10e-6, 2e-6, 5e-6
# Assumed. JPEG images a second and core, by Pillow; published figures are 537 to 726.
DECODED = 600

GPUS = (1, 8, 64, 512)


class Case(NamedTuple):
    """Training on more and more GPUs.

    Attributes:
      title: of the table's rows.
      net: counted in the results' section `devices`.
      size: height and width of the images.
      parallel: jit, with BatchNorm over all devices, or pmap.
      batch: images a step, of each GPU or of all together.
      together: the batch is of all.
    """

    title: str
    net: str
    size: int
    parallel: str
    batch: int
    together: bool = False

    def local(self, gpus: int) -> int:
        """Images a step and GPU; 0: there are too few."""
        return self.batch // gpus if self.together else self.batch


CASES = (
    Case("All-CNN-C, 32 pixels", "allcnn_c", 32, "jit", 128),
    Case("All-CNN-C, 128 images in all", "allcnn_c", 32, "jit", 128, True),
    Case("ResNet-50, 224 pixels, jit", "resnet50", 224, "jit", 256),
    Case("ResNet-50, 224 pixels, pmap", "resnet50", 224, "pmap", 256),
)


class Forecast(NamedTuple):
    """Seconds of a step's parts."""

    images: int  # a step, all GPUs
    device: float
    gradients: float  # their all-reduce
    gradients_latency: float  # of which: without data
    statistics: float  # the all-reduces of BatchNorm and of the metrics
    statistics_latency: float

    @property
    def seconds(self) -> float:
        """Of a step that hides nothing."""
        return self.device + self.gradients + self.statistics

    @property
    def hidden(self) -> float:
        """Of one that hides the gradients behind the backward pass, 2/3 of the work."""
        exposed = max(self.gradients_latency, self.gradients - 2 / 3 * self.device)
        return self.device + self.statistics + exposed

    @property
    def loss(self) -> str:
        """What most of the time beyond the device's own goes into."""
        latency = self.gradients_latency + self.statistics_latency
        if not latency:
            return ""
        moving = self.gradients + self.statistics - latency
        return "latency" if latency > moving else "bytes"


def all_reduce(size: float, gpus: int) -> float:
    """Seconds of an all-reduce of `size` bytes.

    A ring within each host, then one for each GPU of a host across the hosts with its
    part; what has no bytes to wait for goes by trees.
    """
    if gpus == 1:
        return 0.0
    local = min(gpus, HOST)
    hosts = gpus // local
    seconds = 2 * (local - 1) / local * size / NVLINK
    seconds += 2 * (hosts - 1) / hosts * size / local / NETWORK
    hops = LOCAL_HOP * math.log2(local) + NETWORK_HOP * math.log2(hosts)
    return seconds + START + 2 * hops


def forecast(results: dict[str, Any], case: Case, gpus: int) -> Forecast:
    """The parts of a step, from results/benchmarks/scaling.json."""
    (row,) = (
        row for row in results["sections"]["devices"]
        if (row["net"], row["size"], row["parallel"]) == case[1:4]
        and row["devices"] == 8
    )  # fmt: skip
    local = case.local(gpus)
    latency = all_reduce(0, gpus)
    size, large = row["large_collective_bytes"], row["large_collectives"]
    rest, small = row["collective_bytes"] - size, row["collectives"] - large
    return Forecast(
        images=local * gpus,
        device=local / results["rooflines"][roofline_key(case, local)],
        gradients=all_reduce(size, gpus) + (large - 1) * latency,
        gradients_latency=large * latency,
        statistics=all_reduce(rest, gpus) + (small - 1) * latency,
        statistics_latency=small * latency,
    )


def roofline_key(case: Case, local: int) -> str:
    return f"{case.net}, {case.size} pixels, {local} images"


def roofline_benchmark(case: Case, local: int) -> Benchmark:
    """The row of `benchmarks.roofline` that counts one GPU's part."""
    classes = 10 if case.net == "allcnn_c" else 1000
    return Benchmark(
        "train", case.net, local, (), classes=classes, size=case.size, dtype="bfloat16"
    )


def rooflines() -> dict[str, float]:
    """Images a second and GPU at the assumed rates, counted layer by layer."""
    found = {}
    for case in CASES:
        for local in {case.local(gpus) for gpus in GPUS} - {0}:
            bench = roofline_benchmark(case, local)
            rate = images_per_second(bench, RATE, BANDWIDTH)
            found[roofline_key(case, local)] = round(rate, 1)
    return found


def forecast_table(results: dict[str, Any]) -> str:
    """The forecasts as Markdown."""
    lines = [
        "| | GPUs | images a step | device, ms | gradients, ms | other all-reduces, ms "
        "| images/s | efficiency | with gradients hidden | most is lost to "
        "| cores a host to decode |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|---|--:|",
    ]
    for case in CASES:
        one = forecast(results, case, 1)
        for gpus in GPUS:
            if not case.local(gpus):
                lines.append(f"| {case.title} | {gpus} | fewer images than GPUs "
                             "| | | | | | | | |")  # fmt: skip
                continue
            found = forecast(results, case, gpus)
            rate = found.images / found.seconds
            cores = rate * min(gpus, HOST) / gpus / DECODED
            alone = one.images / one.seconds * gpus  # images a second
            parts = (found.device, found.gradients, found.statistics)
            cells = [
                case.title, str(gpus), f"{found.images:,}",
                *(f"{1e3 * part:.3f}" for part in parts),
                f"{rate:,.0f}",
                f"{rate / alone:.0%}",
                f"{found.images / found.hidden / alone:.0%}",
                found.loss,
                f"{cores:.0f}" if case.size > 32 else "",
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
