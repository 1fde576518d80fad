"""Writes docs/results.md and the tables of the README from what lies in results/.

    python -m results            after a CSV of results/ has changed
    python -m results --check    exit status 1 if a page and results/ differ
    python -m results --add table3 runs/table3      takes an experiment over: its
                                                    tables, a log of each run; draws it

An experiment is a directory of the name that `flaxcnn reproduce` knows it by; a run of
its own is a row of runs.csv; `python -m benchmarks.canziani` writes canziani/, and
speedruns.csv has what others publish. In the README a table stands between
`<!-- results:NAME -->` and `<!-- end -->`.
"""

import re
import shutil
import sys
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.goals import verdicts
from flaxcnn.plots import plot_experiment
from flaxcnn.reproduce import EXPERIMENTS
from flaxcnn.reproduce.table import first_runs, markdown, merge, read_csv, write_csv

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
AIRBENCH = "[airbench](https://github.com/KellerJordan/cifar10-airbench)"
SECTION = re.compile(r"(<!-- results:(\w+) -->\n).*?(<!-- end -->\n)", re.DOTALL)
MEASURED = re.compile(r" epoch (\S+) .* (train|test) +loss .* accuracy +(\S+) %")


def runs_table(link: str) -> str:
    """The table of runs.csv; `link` leads to results/."""
    lines = ["| what | command | test accuracy | seconds |", "|---|---|--:|--:|"]
    for row in read_csv(RESULTS / "runs.csv"):
        lines.append(
            f"| [{row['name']}]({link}/{row['log']}) | `{row['command']}` "
            f"| {float(row['test_accuracy']):.2%} | {float(row['seconds']):,.0f} |"
        )
    return "\n".join(lines) + "\n"


def table(name: str, link: str) -> str:
    """The table of an experiment, of the runs, or of the benchmarks' goals on CPU."""
    if name == "runs":
        return runs_table(link)
    if name == "speed":
        rows = report.read(RESULTS / "benchmarks" / "cpu.json")
        return f"{report.goal_table(verdicts('cpu', rows))}\n"
    return markdown(EXPERIMENTS[name], read_csv(RESULTS / name / f"{name}.csv"))


def speedruns() -> str:
    """The section of docs/results.md about the fast recipe."""
    (row,) = read_csv(RESULTS / "fast" / "fast.csv")
    how = row["recipe"] if row["status"] == "finished" else row["status"]
    ours = {**row, "accuracy": row["result"], "source": f"here: {how}"}
    rows = [*read_csv(RESULTS / "speedruns.csv"), {**ours, "recipe": "allcnn_c_fast"}]
    lines = [
        f"## Fast recipes\n\nTraining on CIFAR-10 as {AIRBENCH} publishes it, beside "
        "[ours](../configs/allcnn_c_fast.py): `flaxcnn reproduce fast --workdir "
        "runs/fast`. Its seconds are those after a warm-up, without compilation; ours "
        "are of the whole run after the data are loaded, with compilation and tests. "
        "Its test images count with their mirror images and translations; ours with "
        "their mirror images.\n",
        "| recipe | test accuracy | seconds | on | source |\n|---|--:|--:|---|---|",
    ]
    for row in rows:
        accuracy = f"{float(row['accuracy']):.2%}" if row["accuracy"] else "-"
        cells = (accuracy, row["seconds"] or "-", row["hardware"] or "-", row["source"])
        lines.append(f"| {row['recipe']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def canziani() -> str:
    """The section of docs/results.md about all networks of ImageNet."""
    rows = read_csv(RESULTS / "canziani" / "canziani.csv")
    folder = "../results/canziani"
    rows.sort(key=lambda row: -float(row["top1"]))
    dates = sorted({row["date"] for row in rows})
    lines = [
        "## Accuracy, size and speed\n\n```\npython -m benchmarks.canziani\n```\n\nThe "
        "plots of Canziani et al. (2016, arXiv:1605.07678) for the networks of our "
        "registry. The accuracies are **not ours**: torchvision publishes them, "
        "on ImageNet, of its `IMAGENET1K_V1` weights, which are not all of one recipe: "
        "`mnasnet0_75` and `1_3`, `resnext101_64x4d`, `shufflenet_v2_x1_5` and `x2_0` "
        "had a newer and longer one. Parameters and multiply-adds are the registry's. "
        "Speed is that of our forward pass, measured in batches of "
        f"{rows[0]['batch']} at the standard size, float32, BatchNorm not folded.\n",
        "| network | published top-1 | parameters | multiply-adds | images/s |",
        "|---|--:|--:|--:|--:|",
    ]
    for row in rows:
        lines.append(
            f"| {row['name']} | {float(row['top1']):.2%} "
            f"| {int(row['parameters']):,} | {int(row['macs']) / 1e9:.2f} G "
            f"| {float(row['images_per_second']):.1f} |"
        )
    lines.append(
        f"\n{' and '.join(dates)}, {rows[0]['hardware']}; {rows[0]['versions']}. "
        f"[CSV]({folder}/canziani.csv).\n"
    )
    pictures = {
        "macs": "against multiply-adds, the area is the number of parameters",
        "accuracy": "of each network",
        "speed": "against images/s, the area is the number of parameters",
    }
    lines += [f"![accuracy {x}]({folder}/{name}.png)" for name, x in pictures.items()]
    return "\n".join(lines) + "\n"


def experiments() -> list[str]:
    """The names of those that have been run, in the order of `EXPERIMENTS`."""
    return [name for name in EXPERIMENTS if (RESULTS / name / f"{name}.csv").exists()]


def notes(name: str) -> str:
    """What results/<name>/README.md says below its title, for docs/results.md."""
    path = RESULTS / name / "README.md"
    if not path.exists():
        return ""
    text = path.read_text().partition("\n")[2]
    return re.sub(r"\]\((?!http)", f"](../results/{name}/", text)


def results_page() -> str:
    """docs/results.md."""
    parts = [
        "# Results\n\nMade by `python -m results` from [results/](../results), where "
        "every accuracy of ours has the log of its run.\n",
        f"## Runs\n\n{table('runs', '../results')}",
    ]
    for name in experiments():
        rows, folder = read_csv(RESULTS / name / f"{name}.csv"), f"../results/{name}"
        commands = "\n".join(dict.fromkeys(row["command"] for row in rows))
        places = dict.fromkeys(
            f"{row['date']}, {row['hardware']}; {row['versions']}." for row in rows
        )
        pictures = sorted((RESULTS / name).glob("*.png"))
        parts.append(
            f"## {name}\n\n```\n{commands}\n```\n\n"
            f"{table(name, '../results')}\n{' '.join(places)} "
            f"[CSV]({folder}/{name}.csv), [logs]({folder}/logs).\n\n"
            + "".join(f"![{path.stem}]({folder}/{path.name})\n" for path in pictures)
            + notes(name)
        )
    return "\n".join([*parts, speedruns(), canziani()])


def pages() -> dict[Path, str]:
    """What each page should be."""
    readme = ROOT / "README.md"
    text = SECTION.sub(
        lambda m: f"{m[1]}{table(m[2], 'results')}{m[3]}", readme.read_text()
    )
    return {readme: text, ROOT / "docs" / "results.md": results_page()}


def stale() -> list[Path]:
    """The pages that are not what they should be."""
    return [
        path
        for path, text in pages().items()
        if not path.exists() or path.read_text() != text
    ]


def add(name: str, workdir: Path) -> None:
    """Copies the tables and the logs of a finished experiment, and draws its plot.

    Rows that are there and that this one has not, as of a part of `--models`, stay.
    """
    target = RESULTS / name
    (target / "logs").mkdir(parents=True, exist_ok=True)
    for run in read_csv(workdir / f"{name}-runs.csv"):
        log = workdir / run["run"] / "log.txt"
        if log.exists():  # the run has begun
            shutil.copy(log, target / "logs" / f"{run['run']}.txt")
    for table in (f"{name}.csv", f"{name}-runs.csv"):
        rows, place = read_csv(workdir / table), target / table
        write_csv(place, merge(EXPERIMENTS[name], rows, place))
    draw(name)


def draw(name: str) -> None:
    """The plot of an experiment, from its tables and logs."""
    folder = RESULTS / name
    rows, runs = (read_csv(folder / f"{name}{x}.csv") for x in ("", "-runs"))
    curves = {
        row: logged((folder / "logs" / f"{run}.txt").read_text())
        for row, run in first_runs(rows, runs).items()
    }
    if curves:
        plot_experiment(EXPERIMENTS[name], rows, curves, folder / f"{name}.png")


def logged(log: str) -> list[dict[str, Any]]:
    """What a run's log says of its epochs, as metrics.jsonl does.

    Of an epoch that was run twice, after a run was killed, the last.
    """
    last = {
        (split, float(epoch)): float(percent) / 100
        for epoch, split, percent in MEASURED.findall(log)
    }
    return [
        {"split": split, "epoch": epoch, "accuracy": accuracy}
        for (split, epoch), accuracy in sorted(last.items())
    ]


def main(arguments: list[str]) -> None:
    match arguments:
        case ["--check"]:
            if found := stale():
                names = ", ".join(str(path.relative_to(ROOT)) for path in found)
                sys.exit(f"error: {names} and results/ differ; run python -m results")
            return
        case ["--add", name, workdir] if name in EXPERIMENTS:
            add(name, Path(workdir))
        case ["--help" | "-h"]:
            print(__doc__)
            return
        case []:
            pass
        case _:
            sys.exit(f"error: {' '.join(arguments)}?\n\n{__doc__}")
    for path, text in pages().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


if __name__ == "__main__":
    main(sys.argv[1:])
