"""Runs as processes: killed, stopped, on several devices, in several processes."""

import json
import signal
import socket
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from flaxcnn.weights.files import load_model

RUN = (
    "--config=configs/debug.py:strided_cnn_a", "--config.data.image_size=12",
    "--config.data.translate=1", "--config.data.flip=true", "--config.ema=0.9",
    "--config.deterministic=true",
)  # fmt: skip
# 4 steps an epoch; the checkpoints are in the middle of epochs.
LONG = (*RUN, "--config.steps=70", "--config.checkpoint_every=15 steps",
        "--config.eval_every=35 steps", "--config.log_every=35 steps")  # fmt: skip


def tensors(workdir):
    return load_model(Path(workdir) / "model.safetensors")[0]


def losses_of(path):
    lines = (path / "metrics.jsonl").read_text().splitlines()
    return [(r["step"], r["split"], r["loss"]) for r in map(json.loads, lines)]


def wait_for(condition, process, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.005)


def interrupt(train_py, workdir, number, pipeline):
    """Starts the long run and signals it once it has a checkpoint."""
    process = train_py(
        *LONG, f"--config.data.pipeline={pipeline}", f"--workdir={workdir}", wait=False
    )
    wait_for((workdir / "checkpoints" / "15").exists, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert not (workdir / "model.safetensors").exists(), "it finished too early"
    return process.returncode, out, err


@pytest.mark.parametrize(
    ("pipeline", "number"),
    [
        ("device", signal.SIGKILL),
        pytest.param("device", signal.SIGTERM, marks=pytest.mark.long),
        pytest.param("host", signal.SIGKILL, marks=pytest.mark.long),
        pytest.param("host", signal.SIGTERM, marks=pytest.mark.long),
    ],
)
def test_an_interrupted_run_ends_as_if_it_had_not_been(
    train_py, tmp_path, pipeline, number
):
    options = (*LONG, f"--config.data.pipeline={pipeline}")
    whole = train_py(*options, f"--workdir={tmp_path / 'whole'}")
    assert whole.returncode == 0, whole.stderr

    code, out, err = interrupt(train_py, tmp_path / "again", number, pipeline)
    if number == signal.SIGKILL:
        assert code == -signal.SIGKILL
    else:
        assert code == 0, err
        assert "the same command continues" in out

    again = train_py(*options, f"--workdir={tmp_path / 'again'}")
    assert again.returncode == 0, again.stderr
    assert "continuing from step" in again.stdout
    a, b = tensors(tmp_path / "whole"), tensors(tmp_path / "again")
    jax.tree.map(np.testing.assert_array_equal, a, b)
    # The sums of the interrupted stretch go on too: the same rows.
    assert losses_of(tmp_path / "whole") == losses_of(tmp_path / "again")


NO_DROPOUT = ("--config.model.input_dropout=0", "--config.model.dropout=0")


@pytest.mark.long
@pytest.mark.parametrize("grad_accum", [1, 2])
def test_one_device_eight_by_jit_eight_by_pmap(train_py, tmp_path, grad_accum):
    runs = {"one": (1, "jit"), "jit": (8, "jit"), "pmap": (8, "pmap")}
    for name, (devices, parallel) in runs.items():
        done = train_py(
            *RUN, *NO_DROPOUT, f"--config.parallel={parallel}",
            f"--config.grad_accum={grad_accum if devices > 1 else 1}",
            f"--workdir={tmp_path / name}", devices=devices,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert f"on {devices} cpu" in done.stdout
    one = tensors(tmp_path / "one")
    # Biases start at zero.
    assert np.abs(one["params"]["conv1"]["bias"]).max() > 1e-4
    for name in list(runs)[1:]:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5),
            one, tensors(tmp_path / name),
        )  # fmt: skip
    losses = [losses_of(tmp_path / name) for name in runs]
    for rows in losses[1:]:
        assert rows == [
            (*row[:2], pytest.approx(row[2], rel=1e-4)) for row in losses[0]
        ]


def test_a_signal_far_from_any_event_is_heard(train_py, tmp_path):
    far = [
        f"--config.{what}_every=8000 steps" for what in ("log", "eval", "checkpoint")
    ]
    process = train_py(
        *RUN, "--config.steps=8000", *far, f"--workdir={tmp_path}", wait=False
    )
    wait_for((tmp_path / "log.txt").exists, process)
    log = tmp_path / "log.txt"
    wait_for(lambda: "compiled the training" in log.read_text(), process)
    sent = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert time.monotonic() - sent < 10
    assert "stopped at step" in out
    (kept,) = (tmp_path / "checkpoints").iterdir()
    assert 0 < int(kept.name) < 8000


@pytest.mark.long
def test_a_run_continues_on_another_number_of_devices(train_py, tmp_path):
    whole = train_py(*LONG, f"--workdir={tmp_path / 'whole'}")
    assert whole.returncode == 0, whole.stderr
    moved = (*LONG, f"--workdir={tmp_path / 'moved'}")
    process = train_py(*moved, devices=4, wait=False)
    wait_for((tmp_path / "moved" / "checkpoints" / "15").exists, process)
    process.kill()
    process.communicate()
    again = train_py(*moved)
    assert again.returncode == 0, again.stderr
    assert "continuing from step" in again.stdout
    # Sums in another order: close, and further apart after 55 steps than after 10.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-3),
        tensors(tmp_path / "whole"), tensors(tmp_path / "moved"),
    )  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("pipeline", ["device", "host"])
@pytest.mark.parametrize("parallel", ["jit", "pmap"])
def test_two_processes_equal_one_with_two_devices(
    train_py, tmp_path, parallel, pipeline
):
    options = (*RUN, *NO_DROPOUT[: 2 * (parallel == "pmap")],
               f"--config.parallel={parallel}",
               f"--config.data.pipeline={pipeline}")  # fmt: skip
    one = train_py(*options, f"--workdir={tmp_path / 'one'}", devices=2)
    assert one.returncode == 0, one.stderr
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    processes = [
        train_py(
            *options, f"--workdir={tmp_path / 'two'}",
            f"--coordinator=localhost:{port}", "--num_processes=2",
            f"--process_id={i}", wait=False,
        )
        for i in range(2)
    ]  # fmt: skip
    for process in processes:
        _, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
    assert losses_of(tmp_path / "two") == [
        (*row[:2], pytest.approx(row[2], rel=1e-5))
        for row in losses_of(tmp_path / "one")
    ]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5),
        tensors(tmp_path / "one"), tensors(tmp_path / "two"),
    )  # fmt: skip
