"""The commands as a user types them, with and without mistakes."""

import resource
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from flaxcnn import cli
from flaxcnn.weights.files import load_model
from tests.paths import ROOT

DEBUG = "--config=configs/debug.py"


def assert_one_line(done, *parts):
    """Failed, with one line on stderr and no traceback."""
    assert done.returncode not in (0, None)
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    for part in parts:
        assert part in lines[0]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([DEBUG, "--config.batch_siz=3"], ["'batch_siz'", "batch_size"]),
        (["--config=configs/allcn_c.py"], ["configs/allcn_c.py", "allcnn_c.py"]),
        ([f"{DEBUG}:resnet1"], ["unknown model 'resnet1'"]),
        ([DEBUG, "--lr=3"], ["'--lr=3'", "--config.<key>=<value>"]),
        ([DEBUG, "--config.batch_size=33"], ["33", "2 devices", "use 32"]),
    ],
)
def test_mistakes_are_one_line(train_py, tmp_path, arguments, parts):
    assert_one_line(train_py(*arguments, f"--workdir={tmp_path}", devices=2), *parts)


def test_without_a_network_it_says_what_to_do_at_once(train_py, tmp_path):
    refused = "http://127.0.0.1:9"
    started = time.monotonic()
    done = train_py(
        "--config=configs/allcnn_c.py", f"--workdir={tmp_path / 'run'}",
        TFDS_DATA_DIR=str(tmp_path / "data"), https_proxy=refused, http_proxy=refused,
    )  # fmt: skip
    assert time.monotonic() - started < 15
    assert_one_line(
        done, "cifar-10", str(tmp_path / "data"),
        "python train.py --config configs/allcnn_c.py:digits",
    )  # fmt: skip


@pytest.mark.long
def test_a_full_disk_costs_no_checkpoint(train_py, tmp_path):
    """A limit on the size of files, as a quota sets it: writes fail half way."""
    options = (f"{DEBUG}:strided_cnn_a", "--config.data.image_size=12",
               "--config.steps=60", "--config.checkpoint_every=20 steps")  # fmt: skip
    process = train_py(*options, f"--workdir={tmp_path / 'full'}", wait=False)
    while not (tmp_path / "full" / "checkpoints" / "20").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (200_000, 200_000))
    _, process.stderr = process.communicate(timeout=120)
    assert process.returncode == 1
    last = process.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert "no room on the disk" in last
    assert "the checkpoint of step 20 is whole" in last

    again = train_py(*options, f"--workdir={tmp_path / 'full'}")
    assert again.returncode == 0, again.stderr
    assert "continuing from step 20" in again.stdout
    whole = train_py(*options, f"--workdir={tmp_path / 'whole'}")
    assert whole.returncode == 0, whole.stderr
    a, b = (
        load_model(tmp_path / name / "model.safetensors")[0]
        for name in ("full", "whole")
    )
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_list(capsys):
    cli.main(["list", "allcnn*"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [
        ["allcnn_a", "1,254,250"], ["allcnn_b", "1,300,618"], ["allcnn_c", "1,369,738"],
    ]  # fmt: skip


def test_list_takes_under_a_second_and_no_jax():
    code = (
        "import sys; from flaxcnn.cli import main; main(['list']);"
        "assert 'jax' not in sys.modules and 'flax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_summary(capsys):
    cli.main(["summary", "allconv_mnist"])
    out = capsys.readouterr().out
    assert "conv7" in out
    assert "6,006" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["list", "resnoxt*"], "no model matches 'resnoxt*'"),
        (["summary", "allcnn"], "unknown model 'allcnn'; did you mean"),
        (["prepare", "cifar11"], "cifar10"),
    ],
)
def test_mistakes_of_flaxcnn(arguments, message):
    with pytest.raises(SystemExit) as error:
        cli.main(arguments)
    assert message in str(error.value.code)
