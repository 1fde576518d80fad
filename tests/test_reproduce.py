"""Experiments as one command."""

import csv
import json

import numpy as np
import pytest

from flaxcnn import cli
from flaxcnn.train.config import load_config
from flaxcnn.train.loop import fit
from flaxcnn.weights.files import load_model
from tests.paths import ROOT

CONFIG = f"{ROOT}/configs/debug.py:allconv_mnist"


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """The workdir of a whole experiment, and its arguments."""
    root = tmp_path_factory.mktemp("regimes")
    fit(load_config(CONFIG, {"steps": "4"}), root / "pretrained")
    arguments = [
        "reproduce", "regimes", f"--config={CONFIG}", "--seeds=2",
        f"--workdir={root / 'run'}", "--config.steps=3", "--config.eval_every=1 steps",
        f"--config.transfer.init_from={root / 'pretrained' / 'model.safetensors'}",
        "--config.transfer.cache_features=true", "--config.optim.momentum=0",
    ]  # fmt: skip
    cli.main(arguments)
    return root, arguments


def params(path):
    return load_model(path / "model.safetensors")[0]["params"]


def moved(before, after):
    return {k for k in after if any(
        not np.array_equal(before[k][leaf], after[k][leaf]) for leaf in after[k]
    )}  # fmt: skip


@pytest.mark.long
def test_each_regime_trains_what_its_name_says(experiment):
    root, _ = experiment
    before = params(root / "pretrained")
    found = {
        run: moved(before, params(root / "run" / run))
        for run in ("top_layer-0", "top_3_layers-1", "all_layers-0")
    }
    layers = {f"conv{i}" for i in range(1, 8)}
    assert found["top_layer-0"] == {"conv7"}
    assert found["top_3_layers-1"] == {"conv5", "conv6", "conv7"}
    assert found["all_layers-0"] == layers
    scratch = json.loads((root / "run" / "from_scratch-0" / "config.json").read_text())
    assert scratch["transfer.init_from"] == ""


@pytest.mark.long
def test_the_table_and_the_plot(experiment, capsys):
    root, arguments = experiment
    cli.main(arguments)  # nothing is left to train: the table alone
    table = capsys.readouterr().out
    assert "step 3" not in table
    with (root / "run" / "regimes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["regime"] for row in rows] == [
        "from scratch", "top layer", "top 3 layers", "all layers",
    ]  # fmt: skip
    top = 9 * 16 * 10 + 10
    three = top + 9 * 16 * 16 + 16 + 9 * 8 * 16 + 16
    trained = [int(row["trained_parameters"]) for row in rows]
    assert trained == [6006, top, three, 6006]
    for row in rows:
        runs = [root / "run" / f"{row['regime'].replace(' ', '_')}-{i}" for i in (0, 1)]
        last = [(run / "metrics.jsonl").read_text().splitlines()[-1] for run in runs]
        accuracies = [json.loads(line)["accuracy"] for line in last]
        assert float(row["test_accuracy"]) == pytest.approx(
            np.mean(accuracies), abs=1e-4
        )
        assert float(row["std"]) == pytest.approx(np.std(accuracies, ddof=1), abs=1e-4)
        assert f"| {row['regime']} |" in table
    picture = (root / "run" / "regimes.png").read_bytes()
    assert picture.startswith(b"\x89PNG")


@pytest.mark.long
def test_a_run_that_was_stopped_is_continued(experiment, monkeypatch):
    root, arguments = experiment
    (root / "run" / "top_layer-0" / "model.safetensors").unlink()
    monkeypatch.setattr("flaxcnn.reproduce.fit", lambda config, run: {})
    with pytest.raises(SystemExit, match="top_layer-0: stopped; the same command"):
        cli.main(arguments)
    monkeypatch.undo()
    cli.main(arguments)
    assert (root / "run" / "top_layer-0" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["reproduce", "regime"], "unknown experiment 'regime'; did you mean regimes?"),
        (["--seeds=0"], "--seeds=0; at least 1"),
        (["--config.epochs=x"], "config.epochs='x'"),
    ],
)
def test_mistakes(tmp_path, change, message):
    arguments = ["reproduce", "regimes", f"--config={CONFIG}", f"--workdir={tmp_path}"]
    arguments = (
        change + arguments[2:] if change[0] == "reproduce" else arguments + change
    )
    with pytest.raises(SystemExit) as error:
        cli.main(arguments)
    assert message in str(error.value)
    assert not any(tmp_path.iterdir())


def test_only_experiments_take_config_keys(capsys):
    with pytest.raises(SystemExit):
        cli.main(["list", "--config.epochs=3"])
    assert "unrecognized arguments: --config.epochs=3" in capsys.readouterr().err
