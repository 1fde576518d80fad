"""The recipes on real data, as the README shows them."""

import json
import math

import pytest

from tests.paths import REAL_DATA

pytestmark = pytest.mark.long

CIFAR10 = REAL_DATA / "tfds" / "cifar10"


def rows(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("seed", [0, 1])
def test_digits(train_py, tmp_path, seed):
    done = train_py(
        "--config=configs/allcnn_c.py:digits", f"--config.seed={seed}",
        f"--workdir={tmp_path}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert rows(tmp_path)[-1]["split"] == "test"
    assert rows(tmp_path)[-1]["accuracy"] >= 0.97


@pytest.mark.skipif(not CIFAR10.exists(), reason="no prepared CIFAR-10 beside the repo")
@pytest.mark.parametrize("config", ["allcnn_c.py", "nin.py", "nin.py:lecture"])
def test_cifar10(train_py, tmp_path, config):
    """A few steps of each recipe on real images: the loss is what it must be at first.

    With 2,000 images nothing is learnt yet; that the recipe learns is in results/.
    """
    done = train_py(
        f"--config=configs/{config}", "--config.steps=6", "--config.batch_size=32",
        "--config.data.limit=2000", f"--workdir={tmp_path}",
        TFDS_DATA_DIR=str(REAL_DATA / "tfds"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    train, test = rows(tmp_path)
    assert (train["split"], test["split"]) == ("train", "test")
    assert test["loss"] == pytest.approx(math.log(10), abs=0.15)
    assert "2,000 training, 2,000 test images" in done.stdout
