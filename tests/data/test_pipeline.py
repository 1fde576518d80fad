"""Pipelines: every sample once an epoch, batch t a function of (seed, t)."""

import numpy as np
import pytest
from PIL import Image

from flaxcnn.data.pipeline import (
    DevicePipeline,
    EvalOrder,
    HostPipeline,
    TrainOrder,
    load_data,
    make_gather,
)
from flaxcnn.data.sources import as_arrays, load_source
from flaxcnn.errors import FlaxcnnError
from flaxcnn.train.config import default_config


@pytest.mark.parametrize(("examples", "batch"), [(10, 4), (12, 4), (5, 5), (3, 8)])
def test_every_sample_once_an_epoch(examples, batch):
    order = TrainOrder(examples, batch, seed=3)
    stream = np.concatenate([order(t)["index"] for t in range(3 * examples)])
    epochs = stream[: len(stream) // examples * examples].reshape(-1, examples)
    assert (np.sort(epochs, axis=1) == np.arange(examples)).all()
    assert len({epoch.tobytes() for epoch in epochs}) > 1


def test_batches_follow_from_the_seed_and_the_step():
    a, b = TrainOrder(100, 8, seed=1), TrainOrder(100, 8, seed=2)
    late = a(40)["index"]
    for t in range(100):
        a(t)
    np.testing.assert_array_equal(a(40)["index"], late)
    assert (b(40)["index"] != late).any()


@pytest.mark.parametrize(("examples", "batch"), [(10, 4), (8, 4), (3, 8)])
def test_evaluation_covers_every_sample_once(examples, batch):
    order = EvalOrder(examples, batch)
    feeds = [order(t) for t in range(len(order))]
    seen = np.concatenate([f["index"][f["mask"] > 0] for f in feeds])
    np.testing.assert_array_equal(seen, np.arange(examples))
    assert {len(f["index"]) for f in feeds} == {batch}


def both_pipelines(split, order):
    source = load_source("digits", split, limit=50)
    return DevicePipeline(*as_arrays(source), order), HostPipeline(source, order)


def test_device_and_host_give_the_same_batches():
    device, host = both_pipelines("train", TrainOrder(50, 16, seed=0))
    gather = make_gather("unit", constrain=lambda batch: batch)
    for steps in (range(3), range(3, 5), range(90, 92), range(1, 2)):  # back as well
        a, b = device.feeds(steps), host.feeds(steps)
        for i in range(len(steps)):
            one = gather(
                {**device.resident, "preprocess": {}}, {k: x[i] for k, x in a.items()}
            )
            two = gather({"preprocess": {}}, {k: x[i] for k, x in b.items()})
            assert one.keys() == two.keys() == {"image", "label"}
            for key in one:
                np.testing.assert_array_equal(one[key], two[key])


def test_host_evaluation_ends():
    device, host = both_pipelines("test", EvalOrder(50, 16))
    for t in range(4):
        np.testing.assert_array_equal(
            device.feeds(range(t, t + 1))["mask"], host.feeds(range(t, t + 1))["mask"]
        )


@pytest.fixture
def photos(tmp_path):
    random = np.random.default_rng(0)
    for split, name, count in (("train", "a", 3), ("train", "b", 3), ("test", "a", 2)):
        (tmp_path / split / name).mkdir(parents=True)
        for i in range(count):
            size = (20 + i, 17 + 2 * i, 3)
            image = Image.fromarray(random.integers(0, 255, size, dtype=np.uint8))
            image.save(tmp_path / split / name / f"{i}.png")
    return tmp_path


def data_config(**values):
    config = default_config().data
    config.update(values)
    return config


@pytest.mark.parametrize("pipeline", ["auto", "host"])
def test_own_images(photos, pipeline):
    data = load_data(
        data_config(name=f"folder:{photos}", image_size=12, pipeline=pipeline), 4, 0
    )
    assert data.classes == ("a", "b")
    assert data.image_shape == (12, 12, 3)
    assert (data.train_examples, data.test_examples, data.eval_steps) == (6, 2, 1)
    assert isinstance(
        data.train, HostPipeline if pipeline == "host" else DevicePipeline
    )


def test_random_crops_follow_from_the_seed_and_the_place_in_the_stream(photos):
    config = data_config(name=f"folder:{photos}", image_size=12, random_crop=0.1)
    data, again = load_data(config, 4, 0), load_data(config, 4, 0)
    assert isinstance(data.train, HostPipeline)
    first = data.train.feeds(range(6))["image"]  # 24 of 6 photographs: four epochs
    np.testing.assert_array_equal(again.train.feeds(range(4, 6))["image"], first[4:])
    crops = {x.tobytes() for x in first.reshape(-1, 12, 12, 3)}
    assert len(crops) == 24
    other = load_data(config, 4, 1).train.feeds(range(6))["image"]
    assert crops.isdisjoint(x.tobytes() for x in other.reshape(-1, 12, 12, 3))

    central = load_source(f"folder:{photos}", "test", image_size=12)
    tested = data.test.feeds(range(1))["image"][0, :2]
    np.testing.assert_array_equal(tested, as_arrays(central)[0])


@pytest.mark.parametrize("name", ["digits", "folder"])
def test_a_random_crop_of_all_is_the_whole_image(photos, name):
    """Of its square middle it is the central crop."""
    for path in photos.glob("*/*/*.png"):
        image = Image.open(path).resize((16, 16))
        image.save(path)
    source = load_source(
        "digits" if name == "digits" else f"folder:{photos}", "train", image_size=12
    )
    for i in (0, 5):
        image, label = source.read(i, lambda width, height: (0, 0, width, height))
        np.testing.assert_array_equal(image, source[i]["image"])
        assert label == source[i]["label"]


def test_images_of_different_sizes_need_a_size(photos):
    with pytest.raises(FlaxcnnError, match=r"different sizes.*data\.image_size"):
        load_data(data_config(name=f"folder:{photos}"), 4, 0)


@pytest.mark.parametrize("pipeline", ["device", "host"])
def test_images_of_the_test_split_are_as_large(photos, pipeline):
    for path in photos.glob("*/*/*.png"):
        side = 12 if "train" in path.parts else 16
        Image.new("RGB", (side, side)).save(path)
    config = data_config(name=f"folder:{photos}", pipeline=pipeline)
    with pytest.raises(FlaxcnnError, match=r"\(12, 12, 3\) and \(16, 16, 3\); set"):
        load_data(config, 4, 0)


def test_an_image_of_another_size_that_comes_later(photos):
    for path in photos.glob("*/*/*.png"):
        Image.new("RGB", (12, 12)).save(path)
    Image.new("RGB", (12, 13)).save(photos / "train" / "b" / "2.png")
    config = data_config(name=f"folder:{photos}", pipeline="host")
    config.preprocess = "imagenet"
    data = load_data(config, 6, 0)
    with pytest.raises(FlaxcnnError, match=r"\(13, 12, 3\); set data\.image_size"):
        data.train.feeds(range(1))


def test_a_corrupt_image_is_named(photos):
    broken = photos / "train" / "b" / "1.png"
    broken.write_bytes(broken.read_bytes()[:60])
    for pipeline in ("device", "host"):
        with pytest.raises(FlaxcnnError, match=r"1\.png"):
            load_data(
                data_config(name=f"folder:{photos}", image_size=12, pipeline=pipeline),
                4, 0,
            )  # fmt: skip


def test_constants_need_no_pass_over_the_images(photos):
    (photos / "train" / "b" / "2.png").write_bytes(b"no image")
    config = data_config(name=f"folder:{photos}", image_size=12, pipeline="host")
    config.preprocess = "imagenet"
    data = load_data(config, 6, 0)
    with pytest.raises(FlaxcnnError, match=r"2\.png"):
        data.train.feeds(range(1))


def test_an_image_that_breaks_during_training_is_named(photos):
    source = load_source(f"folder:{photos}", "train", image_size=12)
    host = HostPipeline(source, TrainOrder(6, 6, seed=0))
    (photos / "train" / "a" / "0.png").write_bytes(b"no image")
    with pytest.raises(FlaxcnnError, match=r"0\.png"):
        host.feeds(range(1))
