"""The benchmark runner: its smoke form, goals, kept rows, equality check, bad input."""

import json
import math
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from statistics import median

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxcnn
from flaxcnn import FlaxcnnError

pytest.importorskip("torch")

import benchmarks.__main__ as runner
from benchmarks import report
from benchmarks.benchmark import Goal, Mean, OutOfTime, Setup
from benchmarks.equality import Evidence, evidence, require_equal
from benchmarks.first_result import FILE, first_result
from benchmarks.goals import judge, judge_mean, verdicts
from benchmarks.race import Race
from benchmarks.suites import CONTENDERS, MEANS, SUITES
from benchmarks.variants import RULES
from benchmarks.worker import Worker, draw_weights, roofline
from flaxcnn.reproduce.table import read_csv

ROOT = Path(__file__).parents[1]
BENCH = SUITES["cpu"]["allcnn_c_train"]
PARAMS = 1_369_738


def benchmarks(*arguments):
    command = [sys.executable, "-m", "benchmarks", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def fake_result(bench, rounds, unavailable=()):
    """What `run` returns, of given windows."""
    return {
        "kind": bench.kind, "net": bench.net, "batch": bench.batch, "dtype": "float32",
        "unit": bench.unit, "rounds": rounds, "roofline": None,
        "unavailable": dict.fromkeys(unavailable, "needs CUDA"),
        **report.summarize(rounds),
    }  # fmt: skip


@pytest.mark.long
def test_smoke_of_the_cpu_suite(tmp_path):
    out = tmp_path / "deep" / "cpu.json"
    rows = ["allcnn_c_train", "resnet18_infer", "augment", "jpeg", "first_step"]
    done = benchmarks("--suite", "cpu", "--smoke", "--out", out, "--only", *rows)
    assert done.returncode == 0, done.stderr
    results = json.loads(out.read_text())["benchmarks"]
    assert list(results) == rows
    result = results["allcnn_c_train"]
    assert result["versions"].keys() >= {"jax", "flax", "torch", "python"}
    assert result["preparation_seconds"]["compiling"]["flaxcnn"] > 0
    names = list(BENCH.contenders)
    if "torch_compile" in result["unavailable"]:  # where there is no compiler
        names.remove("torch_compile")

    assert len(result["rounds"]) == 2
    values = result["values"]
    assert list(values) == names
    for name, value in values.items():
        assert value["rounds"] == [median(row[name]) for row in result["rounds"]]
        assert 0 < value["min"] <= value["median"] <= value["max"]
        assert f"| {name} | {report.numbers(value)[0]} |" in done.stdout

    assert list(result["ratios"]) == names[1:]
    ours = values[names[0]]["rounds"]
    for name, ratio in result["ratios"].items():
        pairs = zip(ours, values[name]["rounds"], strict=True)
        assert ratio["rounds"] == pytest.approx([our / peer for our, peer in pairs])
        assert ratio["median"] == pytest.approx(median(ratio["rounds"]))

    for check in result["check"].values():
        assert check["params"] == PARAMS
        ours = result["check"]["flaxcnn"]["values"]
        assert check["values"] == pytest.approx(ours, rel=2e-5)

    mean, deviation = results["augment"]["check"]["flaxcnn"]["values"]
    assert mean == pytest.approx(1.25, abs=0.1)  # uniform bytes, ImageNet's constants
    assert deviation == pytest.approx(1.29, abs=0.1)
    photographs = results["jpeg"]["check"]
    assert photographs.keys() == {"flaxcnn", "torchvision_loader", "pil_loop"}
    assert 0.5 < results["first_step"]["values"]["flaxcnn"]["min"] < 120
    assert out.with_suffix(".md").read_text().count("## ") == 5


@pytest.mark.parametrize(
    ("contender", "window"),
    [
        (x, window)
        for x in RULES
        for window in ((1, 3) if RULES[x][1] == "_stock" else (1,))
    ],
)
def test_a_replaced_rule_computes_the_same(contender, window):
    module, name, make = RULES[contender]
    with jax.enable_x64(True):
        draw = np.random.default_rng(0).standard_normal
        x, channel = jnp.asarray(draw((2, 7, 7, 3))), jnp.arange(1.0, 4.0)
        strides, pads = (2, 2), ((window // 2,) * 2,) * 2
        axes = tuple((i, 3, 2, 1, 4) for i in (1, 2))
        how = {  # arrays, and the rest
            "relu": ([x], ()),
            "_normalise": ([x, channel, channel], (1e-5,)),
            "_max": ([x], (axes, (7, 7))),
            "_stock": ([x, jnp.asarray(draw((window, window, 3, 4)))], (strides, pads)),
        }
        arrays, rest = how[name]

        def results(f):
            y, pull = jax.vjp(lambda *arrays: f(*arrays, *rest), *arrays)
            return y, pull(jax.tree.map(jnp.cos, y))

        ours = getattr(module, name)
        found, expected = results(make(ours)), results(ours)
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


def test_a_rule_is_replaced_in_the_network():
    code = """
from benchmarks.variants import replace_rule

replace_rule("flaxcnn_stock_relu")
import jax, flaxcnn
from flaxcnn.models import allcnn

assert allcnn.relu is jax.nn.relu
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.long
def test_smoke_of_the_gpu_suite(tmp_path):
    out = tmp_path / "gpu.json"
    rows = ["ceilings", "allcnn_c_epoch", "rules_allcnn_c"]
    done = benchmarks(
        "--suite", "gpu", "--smoke", "--rounds", 1, "--out", out, "--only", *rows
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(out.read_text())["benchmarks"]
    assert results["ceilings"]["values"].keys() == {"matmul", "copy"}
    assert results["rules_allcnn_c"]["ratios"].keys() == {"flaxcnn_stock_relu"}
    epoch = results["allcnn_c_epoch"]
    assert epoch["values"]["flaxcnn_fit"]["median"] > 0
    assert epoch["ratios"].keys() >= {"torch_eager", "torch_loader"}
    if "torch_max_autotune" not in epoch["ratios"]:
        why = "needs a C++ compiler"
        assert epoch["unavailable"] == {"torch_max_autotune": why}
        assert f"| torch_max_autotune | unavailable: {why} |" in done.stdout


@pytest.mark.long
def test_equality_check_fails_for_other_weights_recipes_and_sizes(
    monkeypatch, tmp_path
):
    from safetensors.numpy import load_file, save_file

    assert draw_weights(BENCH, tmp_path) == PARAMS
    setup = Setup(BENCH, "torch_eager", tmp_path)
    found = evidence(setup)
    require_equal(BENCH, {"a": found, "b": found}, PARAMS)

    with monkeypatch.context() as patch:
        patch.setattr("benchmarks.peers.pytorch.WEIGHT_DECAY", 0.0)
        no_decay = evidence(setup)
    assert no_decay.values[0] == pytest.approx(found.values[0], rel=1e-6)
    with pytest.raises(FlaxcnnError, match="b has the losses"):
        require_equal(BENCH, {"a": found, "b": no_decay}, PARAMS)

    file = tmp_path / "torch.safetensors"
    weights = load_file(file)
    save_file({**weights, "conv5.weight": 1.01 * weights["conv5.weight"]}, file)
    with pytest.raises(FlaxcnnError, match="b has the losses"):
        require_equal(BENCH, {"a": found, "b": evidence(setup)}, PARAMS)

    wide = found._replace(params=PARAMS + 1)
    with pytest.raises(FlaxcnnError, match="1,369,739 parameters instead of 1,369,738"):
        require_equal(BENCH, {"a": found, "b": wide}, PARAMS)


def test_equality_allows_rounding_only():
    ours = Evidence(5, [2.0, 1.9, 1.8])
    near = Evidence(5, [2.0, 1.9, 1.8 * (1 + 5e-7)])
    require_equal(BENCH, {"a": ours, "b": near}, 5)
    for wrong in ([2.0, 1.9, 1.80001], [2.0, 1.9, float("nan")]):
        with pytest.raises(FlaxcnnError, match="b has the losses"):
            require_equal(BENCH, {"a": ours, "b": Evidence(5, wrong)}, 5)


def test_every_row_names_what_there_is():
    for suite, rows in SUITES.items():
        for name, bench in rows.items():
            assert set(bench.contenders) <= set(CONTENDERS), name
            for goal in bench.goals:
                assert set(goal.against) <= set(bench.contenders[1:]), name
            if bench.net not in ("", "airbench94"):
                flaxcnn.model_info(bench.net)
        assert all(set(mean.rows) <= set(rows) for mean in MEANS[suite])
        assert all(v.met is None and v.value is None for v in verdicts(suite, {}))


def test_a_ratio_is_to_the_hardest_peer_there_is():
    ge1 = Goal(">=", 1.0, ("torch_eager", "torch_compile"))
    rounds = [
        {"flaxcnn": [90.0], "torch_eager": [60.0], "torch_compile": [100.0]},
        {"flaxcnn": [96.0], "torch_eager": [60.0], "torch_compile": [120.0]},
    ]
    verdict = judge("row", ge1, fake_result(BENCH, rounds))
    assert (verdict.what, verdict.met) == ("against torch_compile", False)
    assert verdict.value["rounds"] == pytest.approx([0.9, 0.8])

    for row in rounds:
        del row["torch_compile"]
    verdict = judge("row", ge1, fake_result(BENCH, rounds, ["torch_compile"]))
    assert (verdict.what, verdict.met) == ("against torch_eager", True)
    assert verdict.value["median"] == pytest.approx(1.55)

    one_by_one = [  # the faster by its median is not the one that is ahead
        {"flaxcnn": [90.0], "torch_eager": [95.0], "torch_compile": [99.0]},
        {"flaxcnn": [96.0], "torch_eager": [105.0], "torch_compile": [96.0]},
        {"flaxcnn": [99.0], "torch_eager": [104.0], "torch_compile": [110.0]},
    ]
    # Of the ratios, 0.947, 0.914, 0.952 and 0.909, 1.0, 0.9, the medians count.
    verdict = judge("row", ge1, fake_result(BENCH, one_by_one))
    assert verdict.what == "against torch_compile"

    alone = [{"flaxcnn": [90.0]}]
    assert judge("row", ge1, fake_result(BENCH, alone)).met is None


def test_less_memory_is_better_and_values_have_goals_too():
    bench = SUITES["cpu"]["memory"]
    rounds = [{"flaxcnn": [105.0], "a": [100.0], "b": [200.0]}]
    result = fake_result(bench, rounds)
    verdict = judge("row", Goal("<=", 1.1, ("a", "b")), result)
    assert (verdict.what, verdict.met) == ("against a", True)
    assert judge("row", Goal("<=", 104), result).met is False
    share = Goal(">=", 0.5, (), "G1", True)
    assert judge("row", share, result).met is None  # no ceilings, no roofline
    assert judge("row", share, {**result, "roofline": 200}).met is True
    assert judge("row", share, {**result, "roofline": 300}).met is False


def test_a_mean_is_geometric_and_needs_all_its_rows():
    peers = ("torch_eager",)
    mean = Mean("both", ("x", "y"), Goal(">=", 1.0, peers))
    results = {
        row: fake_result(BENCH, [{"flaxcnn": [ours], "torch_eager": [100.0]}])
        for row, ours in (("x", 50.0), ("y", 800.0))
    }
    verdict = judge_mean(mean, results)
    assert verdict.value["median"] == pytest.approx(2.0)  # not 4.25
    assert verdict.met is True
    assert judge_mean(mean, {"x": results["x"]}).met is None


def test_roofline_of_all_cnn_c():
    """Computed by hand, layer by layer: 0.39 ms for 128 images, 327,000 a second."""
    bench = SUITES["gpu"]["allcnn_c_train"]
    found = roofline(bench, rate=798, bandwidth=3.0)
    assert found == pytest.approx(327_000, rel=0.05)
    assert roofline(bench, rate=399, bandwidth=1.5) == pytest.approx(found / 2)


def test_rows_are_kept_and_the_missing_and_oldest_come_first(
    monkeypatch, tmp_path, capsys
):
    out, measured = tmp_path / "cpu.json", []
    cpu = SUITES["cpu"]

    def fake_run(suite, bench, effort, rounds, deadline, ceilings):
        if bench == cpu["memory"]:
            raise FlaxcnnError("flaxcnn: out of memory")
        measured.append(bench)
        speeds = {name: [100.0 - i] for i, name in enumerate(bench.contenders)}
        return fake_result(bench, [speeds] * rounds)

    monkeypatch.setattr(runner, "run", fake_run)
    arguments = ["--suite", "cpu", "--out", str(out)]
    runner.main([*arguments, "--only", "scan", "--rounds", "2"])
    first = json.loads(out.read_text())["benchmarks"]["scan"]
    assert first["command"].endswith("--only scan --rounds 2")
    assert len(first["rounds"]) == 2

    with pytest.raises(FlaxcnnError, match="memory: flaxcnn: out of memory"):
        runner.main(arguments)
    others = [bench for name, bench in cpu.items() if name not in ("scan", "memory")]
    assert measured == [cpu["scan"], *others, cpu["scan"]]  # the oldest last
    results = json.loads(out.read_text())["benchmarks"]
    assert list(results) == [name for name in cpu if name != "memory"]
    assert "| scan | against flaxcnn | 1.01 | 1.01-1.01 | >= 0.95 | yes |" in (
        out.with_suffix(".md").read_text()
    )

    runner.main([*arguments, "--only", "nin_train"])
    after = json.loads(out.read_text())["benchmarks"]
    assert after["nin_train"]["command"] != results["nin_train"]["command"]
    assert {k: v for k, v in after.items() if k != "nin_train"} == {
        k: v for k, v in results.items() if k != "nin_train"
    }

    measured.clear()  # too little time for any row
    runner.main([*arguments, "--only", "memory", "--time-limit", "1"])
    assert not measured
    assert "left by --time-limit, for the next call: memory" in capsys.readouterr().err


def test_the_roofline_is_that_of_the_card():
    values = {"matmul": {"median": 798}}
    results = {
        "ceilings": {"gpu": "NVIDIA H100, 570.1, 90 W, 300 MHz", "values": values}
    }
    assert runner.ceilings_of("NVIDIA H100, 570.1, 400 W, 1980 MHz", results) == values
    assert runner.ceilings_of("NVIDIA H200, 570.1, 90 W, 300 MHz", results) == {}
    assert runner.ceilings_of("NVIDIA H100, 570.1, 90 W, 300 MHz", {}) == {}


def test_flags_of_a_contender_are_added_to_those_of_the_user(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_a=1")
    race = Race("gpu", SUITES["gpu"]["deterministic"], deadline=math.inf)
    flags = race.environment("flaxcnn_deterministic")["XLA_FLAGS"].split()
    assert flags == ["--xla_a=1", "--xla_gpu_deterministic_ops=true"]
    assert "XLA_FLAGS" not in race.environment("flaxcnn")  # it has the user's


def test_a_deadline_removes_no_contender():
    """Else what took too long to compile would leave its goal to slower ones."""
    bench = SUITES["cpu"]["allcnn_c_train"]
    first, *_, last = bench.contenders

    def measure(turns):
        def turn(name):
            if name == last and not next(turns):
                raise OutOfTime
            return [1.0]

        race = Race("cpu", bench, deadline=math.inf)
        race.measure(3, turn)
        return race

    race = measure(iter([True, False]))
    assert [set(done) for done in race.rounds] == [set(bench.contenders)]
    assert first in race.running
    assert last in race.running
    assert not race.unavailable
    with pytest.raises(OutOfTime):
        measure(iter([False]))


def test_a_row_without_time_for_a_round_is_left(monkeypatch, tmp_path, capsys):
    def fake_run(*args):
        raise OutOfTime

    monkeypatch.setattr(runner, "run", fake_run)
    out = tmp_path / "cpu.json"
    runner.main(["--suite", "cpu", "--only", "scan", "--out", str(out)])
    assert "left by --time-limit, for the next call: scan" in capsys.readouterr().err
    assert json.loads(out.read_text())["benchmarks"] == {}

    tried = []
    monkeypatch.setattr(
        runner, "run", lambda suite, bench, *rest: fake_run(tried.append(bench))
    )
    runner.main(["--suite", "cpu", "--out", str(out), "--only", "scan", "nin_train"])
    assert tried == [
        SUITES["cpu"]["nin_train"],
        SUITES["cpu"]["scan"],
    ]  # it starves none


def test_a_call_ends_at_its_deadline():
    worker = Worker({})
    with closing(worker), pytest.raises(OutOfTime):
        worker.call(time.monotonic(), time.sleep, 60)


def test_a_file_that_is_no_result_stays_as_it_is(tmp_path):
    file = tmp_path / "cpu.json"
    file.write_text("[1, 2]")
    with pytest.raises(FlaxcnnError, match=r"cpu\.json holds no results"):
        report.read(file)
    assert file.read_text() == "[1, 2]"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite", "cpi"], "unknown suite 'cpi'; did you mean cpu?"),
        (["--suite", "cpu", "--only", "allcnn"], "unknown benchmark 'allcnn'; "),
        (["--suite", "cpu", "--rounds", "0"], "--rounds 0; it must be at least 1"),
        (["--suite", "gpu", "--time-limit", "0"], "--time-limit 0; it must be above 0"),
    ],
)
def test_bad_input_raises(arguments, message):
    with pytest.raises(FlaxcnnError) as caught:
        runner.main(arguments)
    assert str(caught.value).startswith(message)


def test_bad_input_is_one_line():
    done = benchmarks("--suite", "cpi")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == "error: unknown suite 'cpi'; did you mean cpu?\n"


def test_missing_package_is_one_line(monkeypatch):
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
    rows = {row["name"] for row in read_csv(FILE)}
    assert rows == set(flaxcnn.list_models()) - {"tiny_bn"}
