"""Whole runs in this process: what they leave behind, and that they are the same."""

import contextlib
import csv
import json
import re
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax._src.array import ArrayImpl

import flaxcnn
from flaxcnn.data import preprocess
from flaxcnn.data.pipeline import HostPipeline
from flaxcnn.data.sources import as_arrays, load_source
from flaxcnn.errors import DivergedError, FlaxcnnError
from flaxcnn.train import loop
from flaxcnn.train.loop import fit
from flaxcnn.weights.files import load_model


def tensors(workdir):
    variables, _, _ = load_model(workdir / "model.safetensors")
    return variables


def assert_identical(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    from flaxcnn.train.config import load_config
    from tests.paths import ROOT

    workdir = tmp_path_factory.mktemp("finished")
    config = load_config(
        f"{ROOT}/configs/debug.py:tiny_bn",
        {"data.translate": "1", "model.dropout": "0.1", "ema": "0.5"},
    )
    return workdir, config, fit(config, workdir)


def test_what_a_run_leaves_behind(finished):
    workdir, _, result = finished
    names = {path.name for path in workdir.iterdir()}
    assert names >= {
        "config.json", "metrics.jsonl", "metrics.csv", "checkpoints",
        "model.safetensors", "curves.png", "log.txt",
    }  # fmt: skip
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert json.loads((workdir / "config.json").read_text())["batch_size"] == 32

    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [(r["step"], r["split"]) for r in rows] == [
        (5, "train"), (5, "test"), (10, "train"), (10, "test"),
    ]  # fmt: skip
    assert rows[-1] == result
    assert rows[0]["epoch"] == 5 * 32 / 128
    with (workdir / "metrics.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [float(row["loss"]) for row in table] == [row["loss"] for row in rows]
    assert (workdir / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["10", "5"]


def test_the_saved_model_predicts_what_the_run_measured(finished):
    """Rebuilt from the file alone: loss and accuracy of the last test row."""
    workdir, _, result = finished
    variables, metadata, arrays = load_model(workdir / "model.safetensors")
    assert metadata["classes"] == [str(digit) for digit in range(10)]
    model = flaxcnn.create_model(metadata["model"], **metadata["fields"])
    images, labels = as_arrays(load_source("digits", "test", limit=128, image_size=8))
    x = preprocess.apply(metadata["preprocess"], arrays, jnp.asarray(images))
    log_p = jax.nn.log_softmax(model.apply(variables, x, train=False))
    losses = -np.asarray(log_p)[np.arange(128), labels]
    assert losses.mean() == pytest.approx(result["loss"], rel=1e-5)
    assert (log_p.argmax(1) == labels).mean() == pytest.approx(result["accuracy"])


def test_a_finished_run_stays_as_it_is(finished):
    workdir, config, result = finished
    names = ("metrics.jsonl", "metrics.csv", "model.safetensors")
    before = [(workdir / name).read_bytes() for name in names]
    assert fit(config, workdir) == result
    assert [(workdir / name).read_bytes() for name in names] == before


def test_another_config_is_refused_with_the_differences(finished):
    workdir, config, _ = finished
    other = config.copy_and_resolve_references()
    other.optim.lr = 0.5
    with pytest.raises(FlaxcnnError) as error:
        fit(other, workdir)
    message = str(error.value)
    assert "optim.lr: 0.01 there, 0.5 now" in message
    assert "--workdir" in message
    assert "seed" not in message


def test_a_new_run_does_not_overwrite(finished):
    workdir, config, _ = finished
    other = config.copy_and_resolve_references()
    other.resume = False
    with pytest.raises(FlaxcnnError, match="holds a run already"):
        fit(other, workdir)


def test_two_runs_are_identical_and_another_seed_is_not(debug_config, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        fit(debug_config("tiny_bn", seed=seed), tmp_path / name)
    a, b, c = (tensors(tmp_path / name) for name in "abc")
    assert_identical(a, b)
    assert (a["params"]["conv"]["kernel"] != c["params"]["conv"]["kernel"]).any()


@pytest.mark.parametrize(
    "overrides", [{"data__pipeline": "host"}, {"steps_per_call": 1}]
)
def test_the_pipeline_does_not_change_the_result(debug_config, tmp_path, overrides):
    options = {"data__flip": True, "model__dropout": 0.1}
    fit(debug_config("tiny_bn", **options), tmp_path / "a")
    fit(debug_config("tiny_bn", **options, **overrides), tmp_path / "b")
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        tensors(tmp_path / "a"), tensors(tmp_path / "b"),
    )  # fmt: skip


def test_divergence_stops_and_keeps_the_last_good_checkpoint(debug_config, tmp_path):
    config = debug_config(  # the rate explodes after step 3
        "tiny_bn", checkpoint_every="1 step", optim__schedule="step",
        optim__milestones="('3 steps',)", optim__gamma=1e38,
    )  # fmt: skip
    with pytest.raises(DivergedError) as error:
        fit(config, tmp_path)
    found = re.search(r"not finite by step (\d); .* is of step (\d)", str(error.value))
    assert "lower config.optim.lr" in str(error.value)
    step, good = int(found[1]), found[2]
    assert int(good) == int(step) - 1 == error.value.step - 1 >= 3
    with ocp.StandardCheckpointer() as checkpointer:
        state = checkpointer.restore(tmp_path / "checkpoints" / good / "state")
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state["variables"]))


def test_a_checkpoint_that_does_not_fit_is_not_begun(
    debug_config, tmp_path, monkeypatch
):
    usage = shutil.disk_usage(tmp_path)
    answers = iter([usage, usage._replace(free=1000)])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: next(answers))
    with pytest.raises(
        FlaxcnnError, match=r"no room on the disk; .* of step 5 is whole"
    ):
        fit(debug_config("tiny_bn"), tmp_path / "run")
    names = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert names == {"5"}


def test_waiting_for_data_counts_in_the_throughput(debug_config, tmp_path, monkeypatch):
    load = HostPipeline._load

    def slow(self, step):
        time.sleep(0.2)
        return load(self, step)

    monkeypatch.setattr(HostPipeline, "_load", slow)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    fit(debug_config("tiny_bn", data__pipeline="host"), tmp_path)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    for row in map(json.loads, lines):
        assert row["images_per_second"] < 2 * 32 / 0.2, row
        assert 0.2 < row["data_wait"] <= 1, row


def test_a_signal_before_the_first_step(debug_config, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        signalled = contextlib.contextmanager(lambda: (yield lambda: True))
        patch.setattr(loop, "stop_signals", signalled)
        assert fit(debug_config("tiny_bn"), tmp_path) == {}
    result = fit(debug_config("tiny_bn"), tmp_path)
    whole = fit(debug_config("tiny_bn"), tmp_path / "whole")
    assert result["loss"] == whole["loss"]


@pytest.mark.parametrize("asked", [3, 4, 5, 6])
def test_a_signal_between_any_two_questions(
    debug_config, tmp_path, monkeypatch, finished, asked
):
    """At a row of the log too: the loop asks, and `train` once more."""
    workdir, config, _ = finished
    answers = iter([False] * asked)
    with monkeypatch.context() as patch:
        signalled = contextlib.contextmanager(
            lambda: (yield lambda: next(answers, True))
        )
        patch.setattr(loop, "stop_signals", signalled)
        fit(config, tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    fit(config, tmp_path)
    assert_identical(tensors(tmp_path), tensors(workdir))


def test_calls_as_on_a_gpu(debug_config, tmp_path, monkeypatch):
    """Whole calls and single steps give what calls of any length do, also resumed."""
    config = debug_config("tiny_bn", steps_per_call=4, epochs=3)  # 5 steps, 5, 2
    one = fit(config, tmp_path / "one program")
    monkeypatch.setattr(loop, "whole_calls", lambda: True)
    whole = fit(config, tmp_path / "two programs")
    assert whole["loss"] == pytest.approx(one["loss"], rel=1e-5)
    answers = iter([False] * 9)  # stops between the last two single steps
    with monkeypatch.context() as patch:
        signalled = contextlib.contextmanager(
            lambda: (yield lambda: next(answers, True))
        )
        patch.setattr(loop, "stop_signals", signalled)
        fit(config, tmp_path / "two calls")
    assert (tmp_path / "two calls" / "checkpoints" / "11").exists()
    assert fit(config, tmp_path / "two calls")["loss"] == whole["loss"]
    assert_identical(
        tensors(tmp_path / "two calls"), tensors(tmp_path / "two programs")
    )


@pytest.mark.parametrize("whole", [False, True])
def test_every_program_is_traced_once(debug_config, tmp_path, monkeypatch, whole):
    """However many calls, steps a call, epochs and evaluations there are."""
    traced = []

    def counted(make):
        def made(*args, **kwargs):
            step = make(*args, **kwargs)

            def count(*inputs):
                traced.append(make.__name__)
                return step(*inputs)

            return count

        return made

    for name in ("make_train_step", "make_eval_step"):
        make = getattr(loop, name)
        monkeypatch.setattr(loop, name, counted(make))
    monkeypatch.setattr(loop, "whole_calls", lambda: whole)
    config = debug_config("tiny_bn", steps_per_call=3, epochs=2.5)
    fit(config, tmp_path)
    programs = 1 + whole  # of three steps and of one
    steps = ("make_eval_step", "make_train_step")
    assert traced.count(steps[0]) == traced.count(steps[1]) == programs
    assert len(traced) == 2 * programs


def test_no_step_waits_for_its_metrics(debug_config, tmp_path, monkeypatch):
    """Nothing comes from the device but for the rows of the log and checkpoints."""
    fetched, training, value = [], [], ArrayImpl._value

    def fetch(array):
        fetched.append(bool(training))
        return value.fget(array)

    def train(trainer, stop, original=loop.Trainer.train):
        training.append(stop)
        original(trainer, stop)
        training.clear()

    monkeypatch.setattr(ArrayImpl, "_value", property(fetch))
    monkeypatch.setattr(loop.Trainer, "train", train)
    fit(debug_config("tiny_bn", steps_per_call=1), tmp_path)
    assert False in fetched
    assert True not in fetched


def test_the_state_is_written_over(debug_config, tmp_path):
    """Donated: two of it are never needed."""
    trainer = loop.Trainer(debug_config("tiny_bn", steps_per_call=1), tmp_path)
    trainer.signalled = lambda: False
    before = jax.tree.leaves(trainer.state)
    trainer.train(1)
    trainer.close()
    assert all(x.is_deleted() for x in before)


def test_what_a_killed_run_left_half_written_goes(finished, tmp_path):
    workdir, config, _ = finished
    shutil.copytree(workdir, tmp_path / "run")
    half = tmp_path / "run" / "checkpoints" / "7.orbax-checkpoint-tmp"
    half.mkdir()
    fit(config, tmp_path / "run")
    assert not half.exists()
    assert_identical(tensors(tmp_path / "run"), tensors(workdir))


def test_a_damaged_checkpoint_is_named(debug_config, tmp_path, capfd):
    fit(debug_config("tiny_bn"), tmp_path)
    for file in (tmp_path / "checkpoints" / "10" / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(b"damaged")
    capfd.readouterr()
    with pytest.raises(FlaxcnnError, match=r"checkpoints/10: cannot restore"):
        fit(debug_config("tiny_bn"), tmp_path)
    assert capfd.readouterr().err == ""


def test_a_workdir_that_cannot_be_written(debug_config, tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(FlaxcnnError, match="file is no directory to write to"):
            fit(debug_config("tiny_bn"), path)


def test_bf16_computes_in_bf16_and_keeps_float32(debug_config, tmp_path):
    fit(debug_config("tiny_bn", precision="bf16"), tmp_path / "bf16")
    fit(debug_config("tiny_bn"), tmp_path / "fp32")
    low, high = tensors(tmp_path / "bf16"), tensors(tmp_path / "fp32")
    assert {x.dtype for x in jax.tree.leaves(low)} == {np.dtype("float32")}
    difference = np.abs(
        low["params"]["conv"]["kernel"] - high["params"]["conv"]["kernel"]
    )
    assert 0 < difference.max() < 0.05


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"data__name": "tfds:cifar"}, "unknown tfds data set 'cifar'; did you mean"),
        ({"data__name": "folder:/nowhere"}, "no directory /nowhere/train"),
        ({"model__num_classes": 5}, "config.model.num_classes=5, but digits has 10"),
        ({"model__name": "allcnn_c", "data__image_size": 0}, "8x8 pixels is too small"),
        ({"data__mixup": 1, "data__cutmix": 1}, "are both on; pick one"),
        ({"eval_every": "0 epochs"}, "config.eval_every='0 epochs'; write"),
        ({"log_every": "never"}, "config.log_every='never' is no duration"),
        ({"data__preprocess": "imagenet"}, "images of shape [8, 8, 1] have 1"),
        ({"transfer__train": "nothing"}, "'nothing' matches no parameter"),
        ({"optim__schedule": "plateau", "optim__gamma": 1}, "gamma"),
        ({"grad_accum": 5}, "is not divisible by 1 devices x 5 micro-batches; use 30"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    debug_config, tmp_path, overrides, message
):
    with pytest.raises(FlaxcnnError) as error:
        fit(debug_config("tiny_bn", **overrides), tmp_path / "run")
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()
