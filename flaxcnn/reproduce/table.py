"""What comes out of an experiment: CSV, Markdown and a plot, from the runs' files."""

import contextlib
import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import jax

from flaxcnn.data.sources import Source, load_source
from flaxcnn.plots import plot_experiment
from flaxcnn.registry import create_model
from flaxcnn.reproduce.experiment import Experiment
from flaxcnn.reproduce.runs import Run
from flaxcnn.structure import variable_shapes
from flaxcnn.train.state import split_params
from flaxcnn.train.workdir import replace_file
from flaxcnn.transfer import parameter_mask

COLUMNS = (
    "row", "parameters", "published_parameters", "result", "std", "runs", "published",
    "images_per_second", "seconds", "training_seconds", "lr", "recipe", "status",
    "source", "date", "hardware", "versions", "command",
)  # fmt: skip
# Recipes of which a paper's conclusions are not to be judged.
SHORTER = ("shortened", "epochs=", "steps=", "examples=", "data.limit=")


def report(
    name: str, experiment: Experiment, runs: Sequence[Run], workdir: Path,
    command: str = "",
) -> str:  # fmt: skip
    """Writes <name>.csv, .md and .png of what has been run; returns the Markdown.

    Rows that the workdir's tables have and these runs have not stay there. Of several
    learning rates a row has the one of the best mean result on the test images, as
    papers do that search for it, of those at which most runs finished; the row's status
    tells where others diverged, and <name>-runs.csv has every run.
    """
    rows = []
    for row in dict.fromkeys(run.row.name for run in runs):
        of_row = [run for run in runs if run.row.name == row]
        rates = dict.fromkeys(run.config.optim.lr for run in of_row)
        groups = [[r for r in of_row if r.config.optim.lr == rate] for rate in rates]
        found = [_summary(experiment, group) for group in groups]
        found.sort(key=lambda row: _rank(experiment.measure, row), reverse=True)
        status = [row["status"] for row in found]
        status[1:] = [words for words in status[1:] if "diverged" in words]
        rows.append({**found[0], "status": "; ".join(status), "command": command})
    workdir.mkdir(parents=True, exist_ok=True)
    rows = merge(experiment, rows, workdir / f"{name}.csv")
    details = [_of_run(run) for run in runs]
    details = merge(experiment, details, workdir / f"{name}-runs.csv")
    write_csv(workdir / f"{name}.csv", rows)
    write_csv(workdir / f"{name}-runs.csv", details)
    text = markdown(experiment, rows)
    (workdir / f"{name}.md").write_text(text)
    if shown := first_runs(rows, details):
        curves = {
            row: [*metrics(workdir / run, "train"), *metrics(workdir / run, "test")]
            for row, run in shown.items()
        }
        plot_experiment(experiment, rows, curves, workdir / f"{name}.png")
    return text


def first_runs(
    rows: Sequence[Mapping[str, Any]], runs: Sequence[Mapping[str, Any]]
) -> dict[str, str]:
    """For each row of the table its first run that has a result: the run's name."""
    rate = {row["row"]: row["lr"] for row in rows}
    return {
        run["row"]: run["run"]
        for run in reversed(runs)
        if run["lr"] == rate.get(run["row"]) and ended(run)
    }


def _summary(experiment: Experiment, runs: Sequence[Run]) -> dict[str, Any]:
    """A row of the table, from runs that differ in their seeds."""
    run = runs[0]
    values: dict[str, Any] = dict.fromkeys(COLUMNS, "")
    values |= {
        "row": run.row.name,
        "parameters": trained_parameters(run),
        "published_parameters": run.row.parameters,
        "published": "" if run.row.published is None else run.row.published,
        "lr": f"{run.config.optim.lr:g}",
        "recipe": run.recipe,
        "status": _status(runs),
        "source": run.row.source,
    }
    finished = [r for r in runs if _accuracy(r) is not None]
    values["runs"] = len(finished)
    if ended := [r.outcome for r in runs if r.outcome]:
        last = max(ended, key=lambda outcome: outcome["date"])
        values |= {key: last[key] for key in ("date", "hardware", "versions")}
    if not finished:
        return values
    results = [_accuracy(r) or 0.0 for r in finished]
    if experiment.measure == "error":
        results = [1 - x for x in results]
    speeds = [x["images_per_second"] for x in metrics(finished[0].path, "train")]
    last_rows = [metrics(r.path, "test")[-1] for r in finished]
    return values | {
        "result": round(mean(results), 4),
        "std": round(stdev(results) if len(results) > 1 else 0.0, 4),
        "images_per_second": round(median(speeds), 1),
        "seconds": round(mean(x["seconds"] for x in last_rows), 1),
        "training_seconds": round(mean(map(_training_seconds, finished)), 1),
    }


def _training_seconds(run: Run) -> float:
    """Without compilation, tests and checkpoints."""
    seconds, step = 0.0, 0
    for row in metrics(run.path, "train"):
        images = (row["step"] - step) * run.config.batch_size
        seconds += images / max(row["images_per_second"], 0.05)  # it is rounded
        step = row["step"]
    return seconds


def _of_run(run: Run) -> dict[str, Any]:
    tests = metrics(run.path, "test")
    last = tests[-1] if tests else {}
    columns = ("step", "epoch", "accuracy", "loss", "seconds")
    return {
        "row": run.row.name, "seed": run.seed, "lr": f"{run.config.optim.lr:g}",
        "status": _status([run]), **{key: last.get(key, "") for key in columns},
        "run": run.path.name, "message": (run.outcome or {}).get("message", ""),
    }  # fmt: skip


def ended(run: Mapping[str, Any]) -> bool:
    """Whether that row of <name>-runs.csv has a result."""
    return not run["status"].startswith(("diverged", "unfinished"))


def merge(
    experiment: Experiment, rows: Sequence[dict[str, Any]], path: Path
) -> list[dict[str, Any]]:
    """The rows, and those of the experiment's others that the file has, in order."""
    order = [row.name for row in experiment.rows]
    others = {*order} - {row["row"] for row in rows}
    old = [row for row in read_csv(path) if row["row"] in others]
    return sorted([*rows, *old], key=lambda row: order.index(row["row"]))


def _status(runs: Sequence[Run]) -> str:
    """ "finished", "diverged at step 12, lr 0.25", "unfinished".

    A run that ends no better than by chance says so: with few steps it has not left its
    plateau, or its units are dead.
    """
    words = []
    outcomes = [run.outcome for run in runs]
    rate = f"lr {runs[0].config.optim.lr:g}"
    if diverged := [o["diverged"] for o in outcomes if o and o["diverged"] is not None]:
        of = f"{len(diverged)} of {len(runs)} " if len(runs) > 1 else ""
        words.append(f"{of}diverged at step {', '.join(map(str, diverged))}, {rate}")
    if missing := outcomes.count(None):
        of = f"{missing} of {len(runs)} " if len(runs) > 1 else ""
        words.append(f"{of}unfinished")
    chance = 1.25 / load(runs[0]).num_classes
    if lost := [x for x in map(_accuracy, runs) if x is not None and x < chance]:
        of = f"{len(lost)} of {len(runs)} " if len(runs) > 1 else ""
        words.append(f"{of}no better than chance, {rate}")
    return "; ".join(words) or "finished"


def _rank(measure: str, row: dict[str, Any]) -> tuple[int, float]:
    if row["result"] == "":
        return 0, 0.0
    sign = 1 if measure == "accuracy" else -1
    return row["runs"], sign * row["result"]


def _accuracy(run: Run) -> float | None:
    """On the test images, of a run that has ended well."""
    outcome = run.outcome
    if outcome is None or outcome["diverged"] is not None:
        return None
    return metrics(run.path, "test")[-1]["accuracy"]


def metrics(path: Path, split: str) -> list[dict[str, Any]]:
    """The rows of a split in a run's metrics.jsonl."""
    file = path / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return [row for row in map(json.loads, lines) if row["split"] == split]


def load(run: Run) -> Source:
    """The images that the run trains on."""
    data = run.config.data
    return load_source(
        data.name, "train", data_dir=data.dir or None,
        image_size=data.image_size or None, resize=data.resize or None,
    )  # fmt: skip


def trained_parameters(run: Run) -> int:
    """The number of parameters that the run trains."""
    source, fields = load(run), dict(run.config.model)
    shape = source[0]["image"].shape
    fields = {"num_classes": source.num_classes, **fields}
    model = create_model(fields.pop("name"), **fields)
    mask = parameter_mask(run.config.transfer.train, model, shape)
    chosen, _ = split_params(variable_shapes(model, shape)["params"], mask)
    return sum(x.size for x in jax.tree.leaves(chosen))


def read_csv(path: Path) -> list[dict[str, Any]]:
    """The rows of a file, none if there is no file; shares of 1 as numbers."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    for row in rows:
        for key in ("result", "std", "published"):
            if row.get(key):
                row[key] = float(row[key])
    return rows


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    columns = dict.fromkeys(key for row in rows for key in row)
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, columns, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    replace_file(path, text.getvalue())


def markdown(experiment: Experiment, rows: Sequence[dict[str, Any]]) -> str:
    """The table. What all rows have in common stands above it."""
    recipes = {row["recipe"] for row in rows}
    columns = {
        experiment.heading: "row",
        "parameters": "parameters",
        f"test {experiment.measure}": "result",
        "images/s": "images_per_second",
        experiment.published: "published",
    }
    if len(recipes) > 1:
        columns["recipe"] = "recipe"
    if any(row["status"] != "finished" for row in rows):
        columns["status"] = "status"
    lines = [f"{experiment.title}."]
    if len(recipes) == 1 and recipes != {"whole"}:
        lines[0] += f" Not the recipe as it is: {recipes.pop()}."
    lines += ["", f"| {' | '.join(columns)} |"]
    left = ("row", "recipe", "status")
    lines.append(
        "|" + "|".join("---" if c in left else "--:" for c in columns.values())
    )
    lines[-1] += "|"
    for row in rows:
        cells = [_cell(row, column) for column in columns.values()]
        lines.append(f"| {' | '.join(cells)} |")
    changes = {change for row in rows for change in row["recipe"].split(", ")}
    if experiment.claims and not any(x.startswith(SHORTER) for x in changes):
        lines += _conclusions(experiment, rows)
    return "\n".join(lines) + "\n"


def _conclusions(
    experiment: Experiment, rows: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Lines of Markdown: how near the published results are, and what they say."""
    found = {row["row"]: row for row in rows if row["result"] != ""}
    apart = [
        abs(float(found[row.name]["result"]) - row.published)
        for row in experiment.rows
        if row.published is not None and row.name in found
    ]
    lines = []
    if len(apart) > 1:
        lines.append(
            f"Mean absolute difference to {experiment.published}, {len(apart)} rows: "
            f"{100 * mean(apart):.2f} points."
        )
    for claim, holds in experiment.claims.items():
        with contextlib.suppress(KeyError):  # not all of its rows are there
            lines.append(f"{claim}: {'yes' if holds(found) else 'no'}.")
    return ["", *lines] if lines else []


def _cell(row: dict[str, Any], column: str) -> str:
    value = row[column]
    if value == "":
        return "-"
    if column == "parameters":
        stated = row["published_parameters"]
        return f"{int(value):,}" + (f" (stated: {stated})" if stated else "")
    if column == "result":
        several = int(row["runs"]) > 1
        return f"{float(value):.2%}" + (f" ± {float(row['std']):.2%}" * several)
    if column == "published":
        return f"{float(value):.2%}"
    if column == "images_per_second":
        return f"{float(value):,.0f}"
    return str(value)
