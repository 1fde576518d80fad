"""What is published follows from results/, and results/ from logs."""

import csv
import re

import pytest

from flaxcnn import model_info
from flaxcnn.reproduce.table import ended
from flaxcnn.weights.catalog import CATALOG
from results import __main__ as page
from tests.paths import ROOT


def test_pages_say_what_the_results_are():
    """If this fails: python -m results."""
    assert page.stale() == []


def test_a_number_that_differs_is_found_and_corrected(tmp_path, monkeypatch):
    (tmp_path / "docs").mkdir()
    for name in ("README.md", "docs/results.md"):
        text = (ROOT / name).read_text()
        number = re.search(r"\d\d\.\d\d%", text)[0]
        (tmp_path / name).write_text(text.replace(number, "12.34%"))
    monkeypatch.setattr(page, "ROOT", tmp_path)
    with pytest.raises(SystemExit, match=r"README\.md, docs/results\.md and results/"):
        page.main(["--check"])
    page.main([])
    for name in ("README.md", "docs/results.md"):
        assert (tmp_path / name).read_text() == (ROOT / name).read_text()


def test_a_part_of_an_experiment_leaves_the_other_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "RESULTS", tmp_path / "results")

    def take_over(name, results):
        workdir = tmp_path / name
        for row in results:
            (workdir / f"{row}-0").mkdir(parents=True)
            (workdir / f"{row}-0" / "log.txt").write_text(log(results[row]))
        rows = [
            {"row": row, "result": result, "std": 0.0, "published": "", "lr": "0.1"}
            for row, result in results.items()
        ]
        runs = [
            {"row": row, "run": f"{row}-0", "lr": "0.1", "status": "finished"}
            for row in results
        ]
        page.write_csv(workdir / "nin.csv", rows)
        page.write_csv(workdir / "nin-runs.csv", runs)
        page.add("nin", workdir)

    def log(result):
        return "".join(
            f"2026-11-28 07:00:00,000 epoch {epoch:<7} step {epoch:<7} {split:5} "
            f"loss 2.3020  accuracy {accuracy:7.2%}      200 images/s\n"
            for epoch in (1, 2)
            for split, accuracy in (("train", epoch / 20), ("test", epoch * result / 2))
        ).replace("%", " %")

    drawn = []
    monkeypatch.setattr(page, "plot_experiment", lambda *given: drawn.append(given))

    take_over("first", {"nin_augmented": 0.1, "nin": 0.2})
    (tmp_path / "second" / "of another call-0").mkdir(parents=True)
    take_over("second", {"nin": 0.3})
    folder = tmp_path / "results" / "nin"
    rows = page.read_csv(folder / "nin.csv")
    found = [(row["row"], row["result"]) for row in rows]
    assert found == [("nin", 0.3), ("nin_augmented", 0.1)]
    assert {path.name: path.read_text() for path in folder.glob("logs/*")} == {
        "nin-0.txt": log(0.3),
        "nin_augmented-0.txt": log(0.1),
    }
    experiment, plotted, curves, path = drawn[-1]
    assert (experiment, plotted) == (page.EXPERIMENTS["nin"], rows)
    assert path == folder / "nin.png"
    assert curves["nin"] == [
        {"split": "test", "epoch": 1, "accuracy": 0.15},
        {"split": "test", "epoch": 2, "accuracy": 0.3},
        {"split": "train", "epoch": 1, "accuracy": 0.05},
        {"split": "train", "epoch": 2, "accuracy": 0.1},
    ]
    assert curves["nin_augmented"][1]["accuracy"] == 0.1


def test_an_epoch_that_was_run_again_counts_once():
    line = (
        "2026-11-28 07:00:00,000 epoch {:<7} step 98     train loss 2.0   accuracy {} %"
    )
    lines = [line.format(*x) for x in ((1, 20.5), (2.01, 30), (2.01, 31), (3, 40))]
    assert page.logged("\n".join(lines)) == [
        {"split": "train", "epoch": 1, "accuracy": 0.205},
        {"split": "train", "epoch": 2.01, "accuracy": 0.31},
        {"split": "train", "epoch": 3, "accuracy": 0.4},
    ]


def last_accuracy(log):
    """Of the last test line of a log, in percent."""
    return float(re.findall(r"test .*accuracy +([\d.]+) %", log.read_text())[-1])


def test_every_run_has_a_log_that_says_the_same():
    for row in page.read_csv(ROOT / "results" / "runs.csv"):
        log = ROOT / "results" / row["log"]
        number = f"{100 * float(row['test_accuracy']):.2f}"
        assert re.search(rf"\b{re.escape(number)} ?%", log.read_text())


@pytest.mark.parametrize("name", page.experiments())
def test_an_experiment_has_the_results_of_its_logs(name):
    folder, measure = ROOT / "results" / name, page.EXPERIMENTS[name].measure
    runs = page.read_csv(folder / f"{name}-runs.csv")
    for row in page.read_csv(folder / f"{name}.csv"):
        of_row = [
            run for run in runs if (run["row"], run["lr"]) == (row["row"], row["lr"])
        ]
        logs = [folder / "logs" / f"{run['run']}.txt" for run in of_row if ended(run)]
        assert len(logs) == int(row["runs"])
        if not logs:
            assert not row["result"]
            continue
        mean = sum(map(last_accuracy, logs)) / len(logs)
        mean = 100 - mean if measure == "error" else mean
        assert 100 * float(row["result"]) == pytest.approx(mean, abs=0.02)
        for run, log in zip(filter(ended, of_row), logs, strict=True):
            (workdir,) = set(re.findall(r"; workdir (\S+)", log.read_text()))
            parent = workdir.removesuffix(f"/{run['run']}")
            assert parent in row["command"].split(), row["row"]


def test_the_networks_facts_are_the_registrys():
    """And the accuracies the catalogue's, of the weights that are named."""
    rows = page.read_csv(ROOT / "results" / "canziani" / "canziani.csv")
    imagenet = {w.model for w in CATALOG if w.data == "imagenet"}
    assert {row["name"] for row in rows} == imagenet
    for row in rows:
        info = model_info(row["name"])
        assert int(row["parameters"]) == info.params, row["name"]
        assert int(row["macs"]) == info.macs, row["name"]
        (weights,) = (w for w in info.weights if w.file in row["source"])
        assert float(row["top1"]) == weights.top1, row["name"]
        assert float(row["images_per_second"]) > 0, row["name"]


def test_every_csv_is_one():
    """As many cells in each row as in the head."""
    for path in (ROOT / "results").rglob("*.csv"):
        with path.open(newline="") as file:
            assert len({len(row) for row in csv.reader(file)}) == 1, path
