"""The forecast for many GPUs: arithmetic by hand, and tables that are not stale."""

import json
import math

import pytest

from benchmarks import scaling
from benchmarks import scaling_model as model
from flaxcnn import FlaxcnnError

CASE = model.Case("by hand", "net", 224, "jit", 100)
RESULTS = {
    "sections": {"devices": [{
        "net": "net", "size": 224, "parallel": "jit", "devices": 8,
        "collectives": 12, "collective_bytes": 90_001_000,
        "large_collectives": 2, "large_collective_bytes": 90_000_000,
    }]},
    "rooflines": {"net, 224 pixels, 100 images": 10_000.0},
}  # fmt: skip


@pytest.fixture(scope="module")
def results():
    return json.loads(scaling.FILE.read_text())


def test_an_all_reduce_by_hand():
    assert model.all_reduce(1e9, 1) == 0
    # 7/8 of the data twice at 450e9 a second; three levels twice at 2 us, and 10 us.
    assert model.all_reduce(1e9, 8) == pytest.approx(2 * 7 / 8 / 450 + 22e-6)
    # Then an eighth across 64 hosts, 63/64 of it twice at 50e9 a second, six levels.
    more = 2 * 63 / 64 / 8 / 50 + 60e-6
    assert model.all_reduce(1e9, 512) == pytest.approx(2 * 7 / 8 / 450 + 22e-6 + more)


def test_a_step_by_hand():
    one, eight = (model.forecast(RESULTS, CASE, gpus) for gpus in (1, 8))
    assert one.seconds == one.hidden == pytest.approx(0.01)
    sums = 2 * 7 / 8 * 90e6 / 450e9
    assert eight.gradients == pytest.approx(sums + 2 * 22e-6)
    # Ten small ones, of a thousand bytes together.
    assert eight.statistics == pytest.approx(10 * 22e-6, rel=1e-3)
    assert eight.seconds == pytest.approx(0.01 + sums + 12 * 22e-6, rel=1e-3)
    # The bytes fit behind the backward pass.
    assert eight.hidden == pytest.approx(0.01 + 12 * 22e-6, rel=1e-3)
    assert eight.images == 800
    assert (one.loss, eight.loss) == ("", "bytes")


def test_a_batch_of_all_gpus_is_divided():
    case = CASE._replace(together=True)
    assert [case.local(gpus) for gpus in (1, 8, 512)] == [100, 12, 0]


def test_the_counts_are_what_the_page_says(results):
    rows = results["sections"]["devices"]
    assert {row["devices"] for row in rows} == {1, 2, 4, 8}
    for row in rows:
        if row["devices"] == 1 and row["parallel"] == "jit":
            assert row["collectives"] == 0
            continue
        assert row["kinds"] == ["all-reduce"]
        statistics = row["statistic_bytes"] * (2 if row["parallel"] == "jit" else 1)
        expected = row["parameter_bytes"] + statistics + 8  # loss and correct
        if (row["net"], row["parallel"]) == ("resnet50", "pmap"):
            # A shortcut's BatchNorm has the gradient of bias of the one that it is
            # added to: they are reduced once.
            expected -= 4 * (256 + 512 + 1024 + 2048)
        assert row["collective_bytes"] == expected
    for key in ("allcnn_c", "resnet50"):
        work = [row["operations"] for row in rows if row["net"] == key]
        assert max(work) < 1.01 * min(work)


def test_the_tables_are_those_of_the_results(results):
    text = scaling.DOCUMENT.read_text()
    assert scaling.BEGIN in text
    assert scaling.document(text, results) == text
    assert scaling.FILE.with_suffix(".md").read_text() == scaling.tables(results)


def test_the_rooflines_are_those_of_the_assumed_rates(results):
    name = "allcnn_c, 32 pixels, 128 images"
    bench = model.roofline_benchmark(model.CASES[0], 128)
    found = model.images_per_second(bench, model.RATE, model.BANDWIDTH)
    assert results["rooflines"][name] == pytest.approx(found, rel=1e-4)
    assert all(math.isfinite(x) for x in results["rooflines"].values())


def test_an_unknown_section():
    with pytest.raises(FlaxcnnError, match="'dephts'; did you mean depth"):
        scaling.main(["dephts"])
