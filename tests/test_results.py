"""What is published follows from results/, and results/ from logs."""

import csv
import re

import pytest

from flaxcnn import model_info
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

    def take_over(workdir, results):
        (tmp_path / workdir / "a-0").mkdir(parents=True)
        rows = [{"row": name, "result": result} for name, result in results.items()]
        page.write_csv(tmp_path / workdir / "nin.csv", rows)
        (tmp_path / workdir / "nin.png").touch()
        (tmp_path / workdir / "a-0" / "log.txt").touch()
        page.add("nin", tmp_path / workdir)

    take_over("first", {"nin_augmented": "1", "nin": "2"})
    take_over("second", {"nin": "3"})
    folder = tmp_path / "results" / "nin"
    expected = [
        {"row": "nin", "result": "3"},
        {"row": "nin_augmented", "result": "1"},
    ]
    assert page.read(folder / "nin.csv") == expected
    assert sorted(path.name for path in folder.glob("*.png")) == [
        "first.png",
        "second.png",
    ]


def last_accuracy(log):
    """Of the last test line of a log, in percent."""
    return float(re.findall(r"test .*accuracy +([\d.]+) %", log.read_text())[-1])


def test_every_run_has_a_log_that_says_the_same():
    for row in page.read(ROOT / "results" / "runs.csv"):
        log = ROOT / "results" / row["log"]
        number = f"{100 * float(row['test_accuracy']):.2f}"
        assert re.search(rf"\b{re.escape(number)} ?%", log.read_text())


@pytest.mark.parametrize("name", page.experiments())
def test_an_experiment_has_the_results_of_its_logs(name):
    folder, measure = ROOT / "results" / name, page.EXPERIMENTS[name].measure
    for row in page.read(folder / f"{name}.csv"):
        if not row["result"]:
            continue
        stem = re.sub(r"[^\w.+-]+", "_", row["row"]).strip("_")
        logs = [folder / "logs" / f"{stem}-{i}.txt" for i in range(int(row["runs"]))]
        mean = sum(map(last_accuracy, logs)) / len(logs)
        mean = 100 - mean if measure == "error" else mean
        assert 100 * float(row["result"]) == pytest.approx(mean, abs=0.02)


def test_the_networks_facts_are_the_registrys():
    """And the accuracies the catalogue's, of the weights that are named."""
    rows = page.read(ROOT / "results" / "canziani" / "canziani.csv")
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
