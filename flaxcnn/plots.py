"""Plots, without a display."""

from collections.abc import Sequence
from itertools import pairwise
from math import inf
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from flaxcnn.graphs import Graph
from flaxcnn.reproduce.experiment import Experiment


def learning_curves(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Loss and error over epochs of both splits, from rows of metrics.jsonl."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    losses, errors = figure.subplots(1, 2)
    for split, style in (("train", "--"), ("test", "-")):
        of_split = [row for row in rows if row["split"] == split]
        epochs = [row["epoch"] for row in of_split]
        marker = "o" if len(epochs) < 20 else ""
        style = f"{marker}{style}"
        losses.plot(epochs, [row["loss"] for row in of_split], style, label=split)
        error = [100 * (1 - row["accuracy"]) for row in of_split]
        errors.plot(epochs, error, style, label=split)
    losses.set(xlabel="epoch", ylabel="loss", ylim=(0, None))
    errors.set(xlabel="epoch", ylabel="error in %", ylim=(0, None))
    for axes in (losses, errors):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=120)


def plot_experiment(
    experiment: Experiment,
    rows: Sequence[dict[str, Any]],
    curves: dict[str, list[dict[str, Any]]],
    path: Path,
) -> None:
    """Results of an experiment beside the published ones, and how they came about.

    Args:
      experiment: of `flaxcnn.reproduce`.
      rows: of its table; those without a result are left out.
      curves: rows of metrics.jsonl by the row's name, of both splits. Those of the
        test images are drawn, or, if a run was tested only at its end, the others.
      path: of the picture.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    rows = [row for row in rows if row["result"] != ""]
    figure = Figure((10, max(3.5, 0.4 * len(rows) + 1)), layout="constrained")
    bars, lines = figure.subplots(1, 2)
    names = [row["row"] for row in rows]
    palette = colormaps["turbo"](np.linspace(0.05, 0.95, len(rows)))
    found = bars.barh(
        names, [100 * row["result"] for row in rows],
        xerr=[100 * row["std"] for row in rows], color=palette, alpha=0.7,
    )  # fmt: skip
    bars.bar_label(found, fmt="%.1f", label_type="center")
    published = [(100 * r["published"], r["row"]) for r in rows if r["published"] != ""]
    if published:
        bars.plot(*zip(*published, strict=True), "kD", label=experiment.published)
        bars.legend(loc="lower center", bbox_to_anchor=(0.5, 1))
    bars.invert_yaxis()
    bars.margins(x=0.15)
    bars.set(xlabel=f"test {experiment.measure} in %", xlim=(0, None))
    tests = [sum(row["split"] == "test" for row in curves[name]) for name in names]
    split = "test" if min(tests) > 1 else "train"
    for name, colour in zip(names, palette, strict=True):
        curve = [row for row in curves[name] if row["split"] == split]
        epochs = [row["epoch"] for row in curve]
        values = [row["accuracy"] for row in curve]
        if experiment.measure == "error":
            values = [1 - x for x in values]
        style = "o-" if len(epochs) < 20 else "-"
        lines.plot(epochs, [100 * x for x in values], style, color=colour, label=name)
    lines.set(xlabel="epoch", ylabel=f"{split} {experiment.measure} in %, first seed")
    lines.grid(alpha=0.3)
    lines.legend(fontsize="small")
    figure.savefig(path, dpi=120)


def plot_graph(graph: Graph, path: Path, title: str = "") -> None:
    """The wiring of a stage, from its input on the left to its output on the right.

    A node's column is the length of the longest way to it. Dashed: the stage's input
    to the nodes without predecessors, and the mean of those without successors.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path as Curve

    x, routes = _columns(graph)
    y = _rows(x, routes)
    height = max(y.values()) - min(y.values())
    figure = Figure((1 + 0.8 * x["out"], 1 + 0.4 * height), layout="constrained")
    axes = figure.subplots()
    axes.set(title=title)
    axes.axis("off")
    colours = {**dict.fromkeys(graph.inputs, "tab:blue"),
               **dict.fromkeys(graph.outputs, "tab:red")}  # fmt: skip
    for source, *route in routes:
        ends = {"in": "tab:blue", "out": "tab:red"}
        colour = ends.get(source) or ends.get(route[-1])
        points = [(x[source] + 0.16, y[source])]
        for item in route:
            left, right = points[-1][0], x[item] - (0.16 if item == route[-1] else 0)
            middle = (left + right) / 2
            points += [(middle, points[-1][1]), (middle, y[item]), (right, y[item])]
        curve = Curve(points, [Curve.MOVETO] + [Curve.CURVE4] * (len(points) - 1))
        axes.add_patch(
            FancyArrowPatch(path=curve, arrowstyle="-|>", mutation_scale=8, lw=0.8,
                            color=colour or "0.5", linestyle="--" if colour else "-")
        )  # fmt: skip
    for node in ("in", *range(graph.nodes), "out"):
        axes.plot(x[node], y[node], "s" if node in ("in", "out") else "o", ms=17,
                  color="white", mec=colours.get(node, "0.3"), mew=1.4)  # fmt: skip
        axes.text(x[node], y[node], str(node), ha="center", va="center", fontsize=8)
    figure.savefig(path, dpi=120)


def _columns(graph: Graph) -> tuple[dict, list[list]]:
    """({item: column}, routes): the nodes, "in", "out", and the ways of the edges.

    A route is [source, waypoints, target], with a waypoint in each column between.
    """
    edges: list[tuple] = [("in", node) for node in graph.inputs]
    edges += [*graph.edges, *((node, "out") for node in graph.outputs)]
    column: dict = dict.fromkeys(("in", *range(graph.nodes), "out"), 0)
    for source, target in edges:  # sorted by source, whose own column is final
        column[target] = max(column[target], column[source] + 1)
    routes = [
        [s, *((s, t, c) for c in range(column[s] + 1, column[t])), t] for s, t in edges
    ]
    waypoints = {item: item[2] for route in routes for item in route[1:-1]}
    return column | waypoints, routes


def _rows(column: dict, routes: list[list]) -> dict:
    """{item: height}, by Sugiyama's method.

    Sweeping to the right and to the left, the items of each column are sorted by the
    mean height of those that they are joined to, and moved there as far as there is
    room.
    """
    joined: dict = {item: [] for item in column}
    for route in routes:
        for left, right in pairwise(route):
            joined[right].append(left)
            joined[left].append(right)
    columns: list[list] = [[] for _ in range(column["out"] + 1)]
    for item, c in column.items():
        columns[c].append(item)
    y = dict.fromkeys(column, 0.0)
    for _ in range(20):
        for items in columns + columns[::-1]:
            best = {item: mean(y[other] for other in joined[item]) for item in items}
            items.sort(key=best.__getitem__)
            heights, edge = [], -inf
            for item in items:
                room = 0.28 if isinstance(item, tuple) else 1.0
                heights.append(max(best[item], edge + room / 2))
                edge = heights[-1] + room / 2
            shift = mean(best.values()) - mean(heights)
            y.update({i: h + shift for i, h in zip(items, heights, strict=True)})
    return y
