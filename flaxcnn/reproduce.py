"""Experiments of the lecture: `flaxcnn reproduce <experiment>`."""

import csv
import json
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import jax
from ml_collections import ConfigDict

from flaxcnn.errors import FlaxcnnError
from flaxcnn.plots import plot_regimes
from flaxcnn.registry import create_model
from flaxcnn.train.config import load_config
from flaxcnn.train.loop import fit
from flaxcnn.train.state import split_params
from flaxcnn.train.workdir import check_workdir, shown
from flaxcnn.transfer import parameter_mask
from flaxcnn.weights.files import load_model

# Of what the config says, each regime changes these keys.
WHOLE = {"transfer.train": "all", "transfer.cache_features": "false"}
REGIMES = {
    "from scratch": {
        **WHOLE, "transfer.init_from": "", "optim.lr_factors": "()",
        "data.preprocess": "standardize",  # not what other weights were trained with
    },
    "top layer": {"transfer.train": "head"},
    "top 3 layers": {"transfer.train": "last:3", "transfer.cache_features": "false"},
    "all layers": WHOLE,
}  # fmt: skip
# Karpathy et al., 2014 (CVPR), Table 3: UCF-101 by a network trained on Sports-1M.
PUBLISHED = {"from scratch": 0.413, "top layer": 0.641, "top 3 layers": 0.654,
             "all layers": 0.622}  # fmt: skip


def regimes(
    config: str, overrides: dict[str, str], workdir: Path, seeds: int = 1
) -> list[dict[str, Any]]:
    """Four ways to use a pretrained network on a data set, each trained and tested.

    A finished run is not repeated, an interrupted one continues. The workdir gets
    regimes.csv, regimes.md and regimes.png, and a directory for each run.

    Args:
      config: of the top layer's training, "configs/transfer.py:squeezenet1_1".
      overrides: of its keys, textual.
      workdir: of the whole experiment.
      seeds: how many runs of each.

    Returns:
      The rows of regimes.csv, one a regime.
    """
    for key in ("seed", "transfer.train"):
        if key in overrides:
            raise FlaxcnnError(f"config.{key} is the experiment's own; leave it out")
    configs = {
        (regime, seed): load_config(config, {**overrides, **keys, "seed": str(seed)})
        for regime, keys in REGIMES.items()
        for seed in range(seeds)
    }
    rows, curves = [], {}
    for regime in REGIMES:
        runs = []
        for seed in range(seeds):
            run = workdir / f"{regime.replace(' ', '_')}-{seed}"
            print(f"{regime}, seed {seed}: {shown(run)}", flush=True)
            finish(configs[regime, seed], run)
            runs.append(run)
        rows.append(
            {"regime": regime, **_summary(runs), "published": PUBLISHED[regime]}
        )
        curves[regime] = _rows(runs[0], "test")
    with (workdir / "regimes.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)
    (workdir / "regimes.md").write_text(_markdown(rows))
    plot_regimes(rows, curves, workdir / "regimes.png")
    return rows


def finish(config: ConfigDict, run: Path) -> None:
    """Trains to the end, unless that has been done.

    Raises:
      FlaxcnnError: as of `fit`; a signal stopped it.
    """
    model = run / "model.safetensors"
    check_workdir(run, config)
    if not model.exists():
        fit(config, run)
    if not model.exists():
        raise FlaxcnnError(f"{shown(run)}: stopped; the same command continues")


def _summary(runs: list[Path]) -> dict[str, Any]:
    """The last test rows of runs that differ in their seeds."""
    last = [_rows(run, "test")[-1] for run in runs]
    accuracies = [row["accuracy"] for row in last]
    speeds = [row["images_per_second"] for row in _rows(runs[0], "train")]
    return {
        "trained_parameters": _trained(runs[0]),
        "test_accuracy": round(mean(accuracies), 4),
        "std": round(stdev(accuracies) if len(runs) > 1 else 0.0, 4),
        "runs": len(runs),
        "images_per_second": round(median(speeds), 1),
        "seconds": round(mean(row["seconds"] for row in last), 1),
    }


def _trained(run: Path) -> int:
    """The number of parameters that the run trained."""
    variables, facts, _ = load_model(run / "model.safetensors")
    model = create_model(facts["model"], **facts["fields"])
    words = json.loads((run / "config.json").read_text())["transfer.train"]
    mask = parameter_mask(words, model, tuple(facts["image_shape"]))
    chosen, _ = split_params(variables["params"], mask)
    return sum(x.size for x in jax.tree.leaves(chosen))


def _rows(run: Path, split: str) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["split"] == split]


def _markdown(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| trained | parameters | test accuracy | images/s | Karpathy 2014, UCF-101 |",
        "|---|--:|--:|--:|--:|",
    ]
    for row in rows:
        spread = f" ± {row['std']:.1%}" if row["runs"] > 1 else ""
        lines.append(
            f"| {row['regime']} | {row['trained_parameters']:,} "
            f"| {row['test_accuracy']:.1%}{spread} | {row['images_per_second']:,.0f} "
            f"| {row['published']:.1%} |"
        )
    return "\n".join(lines) + "\n"
