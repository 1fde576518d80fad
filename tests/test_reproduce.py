"""Experiments as one command."""

import csv
import functools
import json
import math
import os
import re
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxcnn import FlaxcnnError, cli, create_model, model_info
from flaxcnn.reproduce import EXPERIMENTS
from flaxcnn.reproduce.experiment import Experiment, Row
from flaxcnn.reproduce.runs import carry_out, plan, scale
from flaxcnn.reproduce.table import COLUMNS, markdown, report
from flaxcnn.structure import variable_shapes
from flaxcnn.train.config import Durations, load_config
from flaxcnn.train.loop import Trainer, fit
from flaxcnn.train.optim import make_optimizer, make_schedule
from flaxcnn.train.state import split_params
from flaxcnn.train.workdir import write_config
from flaxcnn.transfer import parameter_mask
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
    rows = read(root / "run" / "regimes.csv")
    names = ["from scratch", "top layer", "top 3 layers", "all layers"]
    assert [row["row"] for row in rows] == names
    top = 9 * 16 * 10 + 10
    three = top + 9 * 16 * 16 + 16 + 9 * 8 * 16 + 16
    assert [int(row["parameters"]) for row in rows] == [6006, top, three, 6006]
    for row in rows:
        runs = [root / "run" / f"{row['row'].replace(' ', '_')}-{i}" for i in (0, 1)]
        last = [(run / "metrics.jsonl").read_text().splitlines()[-1] for run in runs]
        accuracies = [json.loads(line)["accuracy"] for line in last]
        assert float(row["result"]) == pytest.approx(np.mean(accuracies), abs=1e-4)
        assert float(row["std"]) == pytest.approx(np.std(accuracies, ddof=1), abs=1e-4)
        assert f"| {row['row']} |" in table
    picture = (root / "run" / "regimes.png").read_bytes()
    assert picture.startswith(b"\x89PNG")


def read(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def experiment_of(*rows, **fields):
    return Experiment("Digits", rows, published="the paper", **fields)


TINY = f"{ROOT}/configs/debug.py:tiny_bn"
GOOD = Row("good", TINY, {"steps": "2"}, 0.5, "a paper", "0.2k")
BAD = Row("bad", TINY, {"steps": "4", "optim.lr": "1e30"})


def test_a_diverged_run_is_a_row(tmp_path, monkeypatch):
    """It is told as what it is, is not repeated, and stops no other."""
    experiment = experiment_of(BAD, GOOD, measure="error")
    runs = plan(experiment, tmp_path, overrides={"data.limit": "64"})
    assert carry_out(runs)
    table = report("test", experiment, runs, tmp_path)
    bad, good = read(tmp_path / "test.csv")
    assert re.fullmatch(r"diverged at step [1-4], lr 1e\+30", bad["status"])
    assert bad["result"] == ""
    assert bad["status"] in table
    messages = [row["message"] for row in read(tmp_path / "test-runs.csv")]
    assert re.match("the .* not finite by step [1-4]; try a lower", messages[0])
    assert messages[1] == ""
    assert good["runs"] == "1"
    last = [json.loads((r.path / "metrics.jsonl").read_text().splitlines()[-1])
            for r in runs[1:]]  # fmt: skip
    errors = [1 - row["accuracy"] for row in last]
    assert float(good["result"]) == pytest.approx(np.mean(errors), abs=1e-4)
    assert "178 (stated: 0.2k)" in table
    assert "Not the recipe as it is: data.limit=64." in table
    monkeypatch.delattr("flaxcnn.reproduce.runs.fit")
    assert carry_out(runs)  # all of them have ended: there is nothing to train
    assert report("test", experiment, runs, tmp_path) == table


def pretend(run, accuracy):
    """The files of a run of two steps that ended so; None: it diverged."""
    run.path.mkdir()
    row = {"accuracy": accuracy or 0.9, "seconds": 1, "images_per_second": 8,
           "epoch": 1, "step": 2}  # fmt: skip
    lines = [json.dumps({**row, "split": split}) for split in ("train", "test")]
    (run.path / "metrics.jsonl").write_text("\n".join(lines))
    outcome = {"diverged": 1 if accuracy is None else None,
               "date": "", "hardware": "", "versions": ""}  # fmt: skip
    (run.path / "outcome.json").write_text(json.dumps(outcome))


def test_of_several_rates_the_best_one_counts(tmp_path):
    experiment = experiment_of(GOOD)
    rates = ["1e30", "1e-6", "0.05"]
    runs = plan(experiment, tmp_path, overrides={"data.limit": "64"}, rates=rates)
    assert [run.config.optim.lr for run in runs] == [1e30, 1e-6, 0.05]
    accuracy = {"1e-06": 0.3, "0.05": 0.12, "1e+30": None}
    for run in runs:
        pretend(run, accuracy[f"{run.config.optim.lr:g}"])
    report("test", experiment, runs, tmp_path)
    (row,) = read(tmp_path / "test.csv")
    assert (row["lr"], row["result"]) == ("1e-06", "0.3")
    assert row["recipe"] == "data.limit=64, optim.lr=1e-06 of 1e30, 1e-6, 0.05"
    assert row["status"] == "finished; diverged at step 1, lr 1e+30"
    assert float(row["training_seconds"]) == 2 * runs[0].config.batch_size / 8
    of_runs = read(tmp_path / "test-runs.csv")
    assert [row["status"] for row in of_runs] == [
        "diverged at step 1, lr 1e+30", "finished", "no better than chance, lr 0.05"
    ]  # fmt: skip


def test_rows_of_an_earlier_call_stay(tmp_path):
    experiment = experiment_of(BAD, GOOD)

    def call(*models):
        limit = {"data.limit": "64"}
        runs = plan(experiment, tmp_path, overrides=limit, models=models)
        assert carry_out(runs)
        return report("test", experiment, runs, tmp_path, "command")

    call("good")
    first = read(tmp_path / "test.csv"), read(tmp_path / "test-runs.csv")
    table = call("bad")
    assert "| good |" in table
    for before, name in zip(first, ("test.csv", "test-runs.csv"), strict=True):
        assert [row["row"] for row in read(tmp_path / name)] == ["bad", "good"]
        assert read(tmp_path / name)[1:] == before
    assert (tmp_path / "test.png").exists()  # with the curve of the run before


def test_conclusions_are_of_whole_recipes():
    experiment = EXPERIMENTS["table3"]
    errors = {row.name: row.published + 0.01 for row in experiment.rows}
    fixed = dict.fromkeys(COLUMNS, "") | {
        "recipe": "whole", "status": "finished", "runs": 1, "std": 0
    }  # fmt: skip
    rows = [
        {**fixed, "row": name, "result": x, "parameters": model_info(name).params}
        for name, x in errors.items()
    ]
    text = markdown(experiment, rows)
    assert "to the paper, not augmented, 12 rows: 1.00 points.\n" in text
    assert "A stride in place of pooling is worse: yes.\n" in text
    assert "A convolution in place of pooling is at least as good: yes.\n" in text
    assert "the paper's table 1: yes.\n" in text
    rows[0]["result"] = errors["strided_cnn_a"]
    assert "A stride in place of pooling is worse: no.\n" in markdown(experiment, rows)
    part = markdown(experiment, rows[1:])
    assert "11 rows" in part
    assert "in place of" not in part
    rows[3]["recipe"] = "precision=bf16"
    assert "in place of" in markdown(experiment, rows)
    for shorter in ("shortened: 5 of 350 epochs", "precision=bf16, data.limit=1000"):
        rows[3]["recipe"] = shorter
        assert "in place of" not in markdown(experiment, rows)


def test_a_signal_while_nothing_trains(tmp_path, monkeypatch):
    def fit(config, path):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except Exception as error:  # as a reader of images takes whatever comes
            raise FlaxcnnError("corrupt") from error

    experiment = experiment_of(GOOD)
    runs = plan(experiment, tmp_path / "run")
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("flaxcnn.reproduce.runs.fit", fit)
    assert not carry_out(runs)
    assert signal.getsignal(signal.SIGTERM) == before
    assert "| unfinished |" in report("test", experiment, runs, tmp_path / "run")
    assert not (tmp_path / "run" / "test.png").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_at_the_end_of_a_run(tmp_path, monkeypatch, capsys, number):
    """It saves what it has, and no other begins; the next call repeats nothing."""
    other = Row("other", TINY, {"steps": "1"})
    runs = plan(experiment_of(GOOD, other), tmp_path, overrides={"data.limit": "64"})
    finish = Trainer.finish

    def interrupted(trainer):
        os.kill(os.getpid(), number)
        finish(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "finish", interrupted)
        assert not carry_out(runs)
    assert (runs[0].path / "model.safetensors").exists()
    assert not runs[1].path.exists()
    capsys.readouterr()
    assert carry_out(runs)
    assert "finished at step 2" in capsys.readouterr().out


def test_of_rates_at_which_runs_diverge(tmp_path):
    """One lucky run of two is no better than two that finish."""
    runs = plan(
        experiment_of(GOOD), tmp_path, seeds=2, rates=["0.1", "0.01"],
        overrides={"data.limit": "64"},
    )  # fmt: skip
    for run, accuracy in zip(runs, (0.9, None, 0.5, 0.4), strict=True):
        pretend(run, accuracy)
    report("test", experiment_of(GOOD), runs, tmp_path)
    (row,) = read(tmp_path / "test.csv")
    assert (row["lr"], row["result"], row["runs"]) == ("0.01", "0.45", "2")
    assert row["status"] == "finished; 1 of 2 diverged at step 1, lr 0.1"


@pytest.mark.long
def test_a_time_limit_in_the_middle_of_a_run(tmp_path, monkeypatch, capsys):
    """Whatever the slices, the parameters are those of an uninterrupted run."""
    never = dict.fromkeys(
        ("eval_every", "log_every", "checkpoint_every"), "9999 epochs"
    )
    row = Row("slow", TINY, {"epochs": "1000", "data.limit": "0", **never})
    monkeypatch.setitem(cli.EXPERIMENTS, "test", experiment_of(row))
    whole = ["reproduce", "test", f"--workdir={tmp_path / 'whole'}"]
    cli.main(whole)
    assert "stopped" not in capsys.readouterr().out
    sliced = [*whole[:2], f"--workdir={tmp_path / 'sliced'}"]
    feeds = Trainer._feeds

    def slow(*args):  # however fast the machine: a minute
        time.sleep(0.01)
        return feeds(*args)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_feeds", slow)
        cli.main([*sliced, "--time-limit=5"])
    out = capsys.readouterr().out
    assert out.endswith("stopped; the same command continues from there\n")
    assert "| unfinished |" in out
    step = int(re.search(r"stopped at step (\d+) of ", out)[1])
    assert step > 0
    cli.main(sliced)
    assert f"continuing from step {step}" in capsys.readouterr().out
    ours, theirs = (params(tmp_path / d / "slow-0") for d in ("sliced", "whole"))
    assert not moved(ours, theirs)


def test_a_shorter_run_has_the_schedule_in_proportion():
    config = load_config(f"{ROOT}/configs/resnet_cifar.py:resnet110_cifar")
    whole, short = Durations(50_000, 128), Durations(50_000, 128)
    assert whole.total(config) == 64_000
    before = make_schedule(config.optim, whole, 64_000)
    scale(config, 163.84 / 16)
    total = short.total(config)
    assert total == 4000
    after = make_schedule(config.optim, short, total)
    for step in (0, 10, 24, 26, 1999, 2001, 2999, 3001, 3999):
        assert after(step) == pytest.approx(before(16 * step))


def test_a_shorter_run_decays_as_far():
    config = load_config(f"{ROOT}/configs/inception_cifar.py")
    durations = Durations(128, 128)  # a step an epoch
    before = make_schedule(config.optim, durations, 60)
    scale(config, 6)
    after = make_schedule(config.optim, durations, 6)
    assert float(after(6)) == pytest.approx(float(before(60)), rel=1e-4)


def test_what_a_row_says_about_its_recipe(tmp_path):
    def recipe(name, **options):
        return plan(EXPERIMENTS[name], tmp_path, **options)[0].recipe

    assert recipe("table3") == recipe("table3", epochs=350) == "whole"
    assert recipe("table3", epochs=5) == "shortened: 5 of 350 epochs"
    assert recipe("table3_augmented", overrides={"data.dir": "/data"}) == "whole"
    assert recipe("table3", rates=["0.1"]) == "optim.lr=0.1"
    runs = plan(EXPERIMENTS["notebooks"], tmp_path, overrides={"epochs": "3"})
    recipes = {run.row.name: (run.recipe, run.config.epochs) for run in runs}
    assert recipes["nin"] == ("epochs=3", 3)
    assert recipes["nin_intended"] == ("whole", 100)  # the row's own goes first
    short = plan(EXPERIMENTS["table3"], tmp_path, epochs=35)[0].config
    assert Durations(50_000, 128).total(short) == math.ceil(35 * 50_000 / 128)
    assert short.optim.milestones == ("20.0 epochs", "25.0 epochs", "30.0 epochs")


@pytest.mark.parametrize("name", sorted({*EXPERIMENTS} - {"regimes"}))
def test_plans(name, tmp_path):
    """Every row has a config that loads, and a directory of its own."""
    experiment = EXPERIMENTS[name]
    runs = plan(experiment, tmp_path, seeds=2, epochs=2)
    assert len(runs) == 2 * len(experiment.rows) == len({run.path for run in runs})
    assert all(run.path.parent == tmp_path for run in runs)
    for row in experiment.rows:
        assert row.published is None or (0 < row.published < 1 and row.source)
    (one,) = plan(experiment, tmp_path, models=[experiment.rows[-1].name])
    assert one.row == experiment.rows[-1]


def test_published_parameters_of_table_3():
    """What the paper states is what we have, but for its two slips."""
    for row in EXPERIMENTS["table3"].rows:
        if row.name not in ("cnn_c", "strided_cnn_c"):
            ours = model_info(row.name).params / 1e6
            assert float(row.parameters[:-1]) == pytest.approx(ours, rel=0.15)


def test_the_layers_that_a_notebook_meant_to_train():
    (row,) = (r for r in EXPERIMENTS["notebooks"].rows if r.name.endswith("two_layers"))
    config = load_config(f"{ROOT}/{row.config}", row.overrides)
    model, shape = create_model("vgg16", num_classes=10), (224, 224, 3)
    mask = parameter_mask(config.transfer.train, model, shape)
    trained, _ = split_params(variable_shapes(model, shape)["params"], mask)
    count = sum(x.size for x in jax.tree.leaves(trained))
    assert count == 4097 * 4096 + 4097 * 10


@pytest.mark.long
@pytest.mark.parametrize("name", sorted({*EXPERIMENTS} - {"regimes"}))
def test_every_row_takes_a_training_step(name, tmp_path):
    """By shapes alone: the model takes the config's images, the optimizer its own."""
    for run in plan(EXPERIMENTS[name], tmp_path):
        config, size = run.config, run.config.data.image_size
        mnist = "mnist" in config.data.name
        shape = (
            ((size or 28), (size or 28), 1) if mnist else (size or 32, size or 32, 3)
        )
        fields = {"num_classes": 10, **config.model}
        model = create_model(fields.pop("name"), **fields)
        logits = jax.eval_shape(
            functools.partial(model.init_with_output, train=True),
            {"params": jax.random.key(0), "dropout": jax.random.key(1)},
            jax.ShapeDtypeStruct((2, *shape), jnp.float32),
        )[0]
        assert logits.shape == (2, 10), run.row.name
        make_optimizer(config.optim, Durations(50_000, config.batch_size), 10_000)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["regime"], "unknown experiment 'regime'; did you mean regimes?"),
        (["regimes", "--seeds=0"], "--seeds=0; at least 1"),
        (["regimes", f"--config={CONFIG}", "--config.epochs=x"], "config.epochs='x'"),
        (["regimes"], "has no config of its own; give one by --config"),
        (["regimes", f"--config={CONFIG}", "--augment"], "has no --augment"),
        (["regimes", f"--config={CONFIG}", "--epochs=3"], "measured in epochs"),
        (["table3", f"--config={CONFIG}"], "leave out --config"),
        (["table3", "--models", "allcn_c"], "did you mean allcnn_c"),
        (["table3", "--config.model.name=nin"], "config.model.name is the experiment"),
        (["table3", "--config.seed=1"], "config.seed is the experiment's own"),
        (["table3", "--time-limit=-1"], "--time-limit=-1; at least 0"),
        (["table3", "--lr", "fast"], "config.optim.lr='fast' is not a float"),
    ],
)
def test_mistakes(tmp_path, change, message):
    with pytest.raises(SystemExit) as error:
        cli.main(["reproduce", *change, f"--workdir={tmp_path}"])
    assert message in str(error.value)
    assert not any(tmp_path.iterdir())


def test_a_workdir_of_another_length_is_refused(tmp_path):
    experiment = experiment_of(GOOD)
    write_config(tmp_path / "good-0", plan(experiment, tmp_path)[0].config)
    plan(experiment, tmp_path)
    plan(experiment, tmp_path, rates=["1"], overrides={"optim.momentum": "0"})
    with pytest.raises(FlaxcnnError, match="belongs to a run of another config"):
        plan(experiment, tmp_path, overrides={"optim.momentum": "0"})


def test_only_experiments_take_config_keys(capsys):
    with pytest.raises(SystemExit):
        cli.main(["list", "--config.epochs=3"])
    assert "unrecognized arguments: --config.epochs=3" in capsys.readouterr().err
