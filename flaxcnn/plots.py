"""Plots, without a display."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any


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
