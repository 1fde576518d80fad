"""The plots of Canziani et al. (2016, arXiv:1605.07678) from our own registry.

    python -m benchmarks.canziani                      # every network, then the plots
    python -m benchmarks.canziani vgg16 resnet50       # these rows anew, then the plots

Of each network with published ImageNet weights: their top-1 accuracy as torchvision
states it, one central crop, for the weights that it calls IMAGENET1K_V1 (nothing is
trained or evaluated here); parameters and multiply-adds of our registry; and images/s
of our forward pass, measured here: batches of 8 at the standard size, float32, random
weights, BatchNorm not folded, the median of five calls after a first one. Updates
results/canziani/.
"""

import statistics
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.report import environment
from flaxcnn import FlaxcnnError, create_model, list_models, model_info
from flaxcnn.errors import unknown
from flaxcnn.reproduce.table import read_csv, write_csv
from flaxcnn.weights.catalog import CATALOG, Weights
from flaxcnn.xla import compiler_options

FOLDER = Path(__file__).parents[1] / "results" / "canziani"
BATCH, CALLS = 8, 5
FAMILIES = (
    "alexnet", "vgg", "googlenet", "inception_v3", "resnet", "resnext", "wide_resnet",
    "densenet", "squeezenet", "mobilenet_v2", "shufflenet_v2", "mnasnet",
)  # fmt: skip

Row = dict[str, Any]


def published() -> dict[str, Weights]:
    """torchvision's first ImageNet weights of each network, by its name."""
    found = {w.model: w for w in CATALOG if w.data == "imagenet" and w.version == "V1"}
    return {name: found[name] for name in list_models() if name in found}


def images_per_second(name: str) -> float:
    """Of the jitted forward pass."""
    model, shape = create_model(name), model_info(name).input_size
    x = jnp.zeros((1, *shape))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))
    variables = jax.tree.map(_draw, shapes)
    forward = jax.jit(
        lambda variables, x: model.apply(variables, x, train=False),
        compiler_options=compiler_options(),
    )
    images = jax.random.normal(jax.random.key(0), (BATCH, *shape))
    jax.block_until_ready(forward(variables, images))
    seconds = []
    for _ in range(CALLS):
        started = time.perf_counter()
        jax.block_until_ready(forward(variables, images))
        seconds.append(time.perf_counter() - started)
    return BATCH / statistics.median(seconds)


def _draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:
    """Kernels that keep the scale of their input; ones for all that is a vector."""
    if len(leaf.shape) < 2:
        return jnp.ones(leaf.shape)
    values = np.random.default_rng(0).standard_normal(leaf.shape, np.float32)
    return jnp.asarray(values * (2 / np.prod(leaf.shape[:-1])) ** 0.5)


def measure(name: str) -> Row:
    found, info, weights = environment(), model_info(name), published()[name]
    return {
        "name": name, "top1": weights.top1,
        "source": f"torchvision, {weights.file}", "parameters": info.params,
        "macs": info.macs, "input": "x".join(map(str, info.input_size)),
        "images_per_second": f"{images_per_second(name):.1f}", "batch": BATCH,
        "date": time.strftime("%Y-%m-%d"), "hardware": f"{found['cores']} CPU cores, "
        f"{found['cpu']}", "versions": "; ".join(
            f"{package} {found['versions'][package]}"
            for package in ("python", "jax", "flax")),
    }  # fmt: skip


def plot(rows: list[Row]) -> None:
    """The three pictures."""
    macs = [float(row["macs"]) / 1e9 for row in rows]
    balls(rows, macs, "multiply-adds of an image, 10⁹", "macs.png")
    speeds = [float(row["images_per_second"]) for row in rows]
    balls(rows, speeds, f"images/s, {rows[0]['hardware']}, batch {BATCH}", "speed.png")
    bars(rows)


def family(name: str) -> str:
    return next(family for family in FAMILIES if name.startswith(family))


def colour(name: str) -> Any:
    from matplotlib import colormaps

    return colormaps["tab20"](FAMILIES.index(family(name)) / 20)


def balls(rows: list[Row], xs: list[float], xlabel: str, file: str) -> None:
    """Accuracy against x; the area is the number of parameters."""
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

    figure = Figure((11, 7.5), layout="constrained")
    axes = figure.subplots()
    axes.set(xscale="log", xlabel=xlabel, ylabel="published top-1 accuracy in %")
    axes.grid(alpha=0.3)
    points = [(x, 100 * float(row["top1"])) for x, row in zip(xs, rows, strict=True)]
    for (x, y), row in zip(points, rows, strict=True):
        area = 8 * float(row["parameters"]) / 1e6
        axes.scatter(x, y, area, color=colour(row["name"]), alpha=0.5, linewidths=0)
        axes.plot(x, y, ".", color="0.2", ms=3)
    for millions in (5, 50, 150):
        axes.scatter(
            [], [], 8 * millions, color="0.6", label=f"{millions} M parameters"
        )
    axes.legend(
        loc="lower right" if "macs" in file else "lower left",
        labelspacing=2, handletextpad=2, borderpad=1.5,
    )  # fmt: skip
    figure.draw_without_rendering()
    centres = axes.transData.transform(points)
    taken: list[Any] = [Bbox.from_extents(*c - 4, *c + 4) for c in centres]
    for point, row in zip(points, rows, strict=True):
        label(axes, point, row["name"], taken)
    figure.savefig(FOLDER / file, dpi=110)


def label(axes: Any, point: tuple[float, float], name: str, taken: list[Any]) -> None:
    """A name where there is room for it, as near to its point as can be."""
    for distance in range(6, 120, 6):
        for angle in np.linspace(0, 2 * np.pi, 16, endpoint=False):
            dx, dy = distance * np.cos(angle), distance * np.sin(angle)
            where: dict[str, Any] = {"xytext": (dx, dy), "textcoords": "offset points"}
            text = axes.annotate(
                name, point, **where, va="center", fontsize=7.5,
                ha="left" if dx > 1 else "right" if dx < -1 else "center",
                color=[0.6 * c for c in colour(name)[:3]],
            )  # fmt: skip
            box = text.get_window_extent()
            inside = axes.bbox.containsx(box.x0) and axes.bbox.containsx(box.x1)
            if inside and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                if distance > 12:
                    line = {"arrowstyle": "-", "lw": 0.4, "color": "0.5"}
                    axes.annotate("", point, **where, arrowprops=line)
                return
            text.remove()


def bars(rows: list[Row]) -> None:
    """Accuracy of each network."""
    from matplotlib.figure import Figure

    rows = sorted(rows, key=lambda row: float(row["top1"]))
    figure = Figure((8, 9), layout="constrained")
    axes = figure.subplots()
    names = [row["name"] for row in rows]
    drawn = axes.barh(
        names, [100 * float(row["top1"]) for row in rows],
        color=[colour(name) for name in names], alpha=0.7,
    )  # fmt: skip
    axes.bar_label(drawn, fmt="%.1f", padding=2, fontsize=8)
    axes.set(xlabel="published top-1 accuracy in %", xlim=(0, 90))
    axes.margins(y=0.01)
    figure.savefig(FOLDER / "accuracy.png", dpi=110)


def main(names: list[str]) -> None:
    for name in names:
        if name not in published():
            raise unknown("network with ImageNet weights", name, published())
    jax.config.update("jax_enable_compilation_cache", False)
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / "canziani.csv"
    rows = {row["name"]: row for row in read_csv(path)}
    for name in names or published():
        rows[name] = measure(name)
        print(f"{name:20} {rows[name]['images_per_second']:>8} images/s", flush=True)
        write_csv(path, [rows[n] for n in published() if n in rows])
    plot([rows[n] for n in published() if n in rows])


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except FlaxcnnError as error:
        sys.exit(f"error: {error}")
