"""The benchmark runner: its smoke form, its equality check, bad input."""

import json
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest

import flaxcnn
from flaxcnn import FlaxcnnError

pytest.importorskip("torch")

from benchmarks.equality import TOLERANCE, evidence, require_equal
from benchmarks.first_result import first_result, read
from benchmarks.suites import SUITES
from benchmarks.worker import fresh_weights

ROOT = Path(__file__).parents[1]
BENCH = SUITES["cpu"]["allcnn_c_train"]
PARAMS = 1_369_738


def benchmarks(*arguments):
    command = [sys.executable, "-m", "benchmarks", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.long
def test_smoke(tmp_path):
    out = tmp_path / "deep" / "cpu.json"
    done = benchmarks("--suite", "cpu", "--smoke", "--out", out)
    assert done.returncode == 0, done.stderr
    document = json.loads(out.read_text())
    assert document["versions"].keys() >= {"jax", "flax", "torch", "python"}
    result = document["benchmarks"]["allcnn_c_train"]
    names = list(BENCH.contenders)

    assert len(result["rounds"]) == 2
    speeds = result["images_per_second"]
    assert list(speeds) == list(result["threads"]) == names
    for name, speed in speeds.items():
        assert speed["rounds"] == [median(row[name]) for row in result["rounds"]]
        assert 0 < speed["min"] <= speed["median"] <= speed["max"]
        assert f"| {name} | {speed['median']:.1f} |" in done.stdout

    assert list(result["ratios"]) == names[1:]
    for name, ratio in result["ratios"].items():
        pairs = zip(speeds["flaxcnn"]["rounds"], speeds[name]["rounds"], strict=True)
        assert ratio["rounds"] == pytest.approx([ours / peer for ours, peer in pairs])
        assert ratio["median"] == pytest.approx(median(ratio["rounds"]))

    assert list(result["check"]) == names
    for check in result["check"].values():
        assert check["params"] == PARAMS
        ours = result["check"]["flaxcnn"]["losses"]
        assert check["losses"] == pytest.approx(ours, rel=TOLERANCE)


@pytest.mark.long
def test_equality_check_fails_for_other_weights_recipes_and_sizes(monkeypatch):
    weights = fresh_weights(BENCH)
    found = evidence("torch_eager", BENCH, weights)
    require_equal({"a": found, "b": found}, PARAMS)

    kernel = weights["params/conv5/kernel"]
    other = evidence(
        "torch_eager", BENCH, {**weights, "params/conv5/kernel": 1.01 * kernel}
    )
    with pytest.raises(FlaxcnnError, match="b has the losses"):
        require_equal({"a": found, "b": other}, PARAMS)

    monkeypatch.setattr("benchmarks.peers.torch_eager.WEIGHT_DECAY", 0.0)
    no_decay = evidence("torch_eager", BENCH, weights)
    assert no_decay.losses[0] == pytest.approx(found.losses[0], rel=TOLERANCE)
    with pytest.raises(FlaxcnnError, match="b has the losses"):
        require_equal({"a": found, "b": no_decay}, PARAMS)

    wide = found._replace(params=PARAMS + 1)
    with pytest.raises(FlaxcnnError, match="1,369,739 parameters instead of 1,369,738"):
        require_equal({"a": found, "b": wide}, PARAMS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite", "cpi"], "unknown suite 'cpi'; did you mean cpu?"),
        (["--suite", "cpu", "--only", "allcnn"], "unknown benchmark 'allcnn'; "),
        (["--suite", "cpu", "--rounds", "0"], "--rounds 0; it must be at least 1"),
    ],
)
def test_bad_input_is_one_line(arguments, message):
    done = benchmarks(*arguments)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: {message}")
    assert done.stderr.count("\n") == 1


def test_missing_package_is_one_line(monkeypatch):
    from benchmarks import report

    monkeypatch.setattr(report, "PACKAGES", ("no-such-package",))
    with pytest.raises(FlaxcnnError, match="the benchmarks need no-such-package; pip"):
        report.environment()


@pytest.mark.long
@pytest.mark.parametrize(
    "name", ["densenet201", "inception_resnet_v2", "resnet1202_cifar", "resnet152"]
)
def test_the_first_result_comes_soon(name):
    """The slowest of results/first_result.csv, with much room: they take 4 s there."""
    assert first_result(name)[0] < 60


def test_every_name_has_its_time():
    rows = {row["name"] for row in read()}
    assert rows == set(flaxcnn.list_models()) - {"tiny_bn"}
