"""Sources: digits, folders of images, and the prepared data sets where present."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flaxcnn.data.sources import as_arrays, load_source
from flaxcnn.errors import FlaxcnnError
from tests.paths import REAL_DATA


def _one_line(call: Callable[[], object]) -> str:
    with pytest.raises(FlaxcnnError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


def _noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, channels), dtype=np.uint8)


def _save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


# digits


def test_digits_are_scikit_learns_split_by_every_fifth() -> None:
    from sklearn.datasets import load_digits

    train, test = load_source("digits", "train"), load_source("digits", "test")
    assert (len(train), len(test)) == (1438, 359)
    assert train.classes == tuple("0123456789")
    assert train.num_classes == 10
    data = load_digits()
    images, labels = as_arrays(test)
    assert images.shape == (359, 8, 8, 1)
    assert (images.dtype, labels.dtype) == (np.uint8, np.int32)
    np.testing.assert_allclose(images[..., 0], data.images[4::5] * 255 / 16, atol=0.5)
    np.testing.assert_array_equal(labels, data.target[4::5])
    assert (images.min(), images.max()) == (0, 255)
    train_images, train_labels = as_arrays(train)
    np.testing.assert_array_equal(np.delete(data.target, np.s_[4::5]), train_labels)
    assert int(train_images[4][..., 0].argmax()) == int(data.images[5].argmax())


def test_digits_grow_to_the_image_size() -> None:
    small = load_source("digits", "test")
    large = load_source("digits", "test", image_size=32)
    images, _ = as_arrays(large)
    assert images.shape == (359, 32, 32, 1)
    means = images.reshape(359, 8, 4, 8, 4).mean((2, 4))  # shrunk again by averaging
    assert np.abs(means - as_arrays(small)[0][..., 0]).mean() < 20
    cropped = load_source("digits", "test", image_size=24, resize=32)
    np.testing.assert_array_equal(as_arrays(cropped)[0], images[:, 4:-4, 4:-4])


@pytest.mark.parametrize(
    ("limit", "size"), [(None, 359), (0, 359), (7, 7), (999, 359), (359, 359)]
)
def test_limit_keeps_the_first(limit: int | None, size: int) -> None:
    source = load_source("digits", "test", limit=limit)
    whole = load_source("digits", "test")
    assert len(source) == size
    np.testing.assert_array_equal(source[size - 1]["image"], whole[size - 1]["image"])
    assert source[-1]["label"] == source[np.int64(size - 1)]["label"]
    with pytest.raises(IndexError):
        source[size]


@pytest.mark.parametrize(
    ("name", "options", "part"),
    [
        ("cifar10", {}, "did you mean tfds:cifar10"),
        ("digit", {}, "did you mean digits"),
        ("imagefolder:/x", {}, "folder:<path>"),
        ("tfds:", {}, "tfds:<name>"),
        ("digits", {"split": "tset"}, "did you mean test"),
        ("digits", {"limit": -1}, "data.limit=-1"),
        ("digits", {"image_size": 0}, "image_size=0"),
    ],
)
def test_wrong_requests(name: str, options: dict, part: str) -> None:
    options = {"split": "train", **options}
    assert part in _one_line(lambda: load_source(name, **options))


def test_digits_and_folders_work_without_tfds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    monkeypatch.setitem(sys.modules, "grain", None)
    assert len(load_source("digits", "train")) == 1438
    _save(tmp_path / "train" / "a" / "1.png", _noise(4, 4))
    assert len(load_source(f"folder:{tmp_path}", "train")) == 1
    message = _one_line(lambda: load_source("tfds:cifar10", "train"))
    assert "pip install tensorflow-datasets" in message


# folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index, name in enumerate(["train/cat/2", "train/cat/1", "train/ant/9"]):
        _save(tmp_path / f"{name}.png", _noise(6, 8, seed=index))
    _save(tmp_path / "train" / "cat" / "deep" / "3.JPG", _noise(6, 8))
    _save(tmp_path / "val" / "cat" / "4.png", _noise(6, 8))
    (tmp_path / "train" / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "train" / "cat" / "._1.png").write_text("a Mac's shadow file")
    (tmp_path / "train" / ".cache").mkdir()
    return tmp_path


def test_folder(folder: Path) -> None:
    train = load_source(f"folder:{folder}", "train")
    assert train.classes == ("ant", "cat")
    images, labels = as_arrays(train)
    np.testing.assert_array_equal(labels, [0, 1, 1, 1])  # classes take turns
    np.testing.assert_array_equal(images[0], _noise(6, 8, seed=2))
    np.testing.assert_array_equal(images[1], _noise(6, 8, seed=1))
    test = load_source(f"folder:{folder}", "test")
    assert test.classes == ("ant", "cat")
    assert [example["label"] for example in test] == [1]


def test_folder_prefers_the_test_split(folder: Path) -> None:
    for name in "validation", "test":
        _save(folder / name / "ant" / "1.png", _noise(6, 8))
        assert load_source(f"folder:{folder}", "test")[0]["label"] == 0


def test_threads_keep_the_order(tmp_path: Path) -> None:
    for index in range(12):
        _save(tmp_path / "train" / "a" / f"{index:02}.png", _noise(90, 90, seed=index))
    images, _ = as_arrays(load_source(f"folder:{tmp_path}", "train"))
    for index, image in enumerate(images):
        np.testing.assert_array_equal(image, _noise(90, 90, seed=index))


def test_different_sizes_need_an_image_size(folder: Path) -> None:
    _save(folder / "train" / "ant" / "10.png", _noise(7, 8))
    source = load_source(f"folder:{folder}", "train")
    assert "set data.image_size" in _one_line(lambda: as_arrays(source))
    source = load_source(f"folder:{folder}", "train", image_size=5)
    assert as_arrays(source)[0].shape == (5, 5, 5, 3)
    source = load_source(f"folder:{folder}", "train", image_size=5, resize=7)
    image = Image.fromarray(_noise(6, 8, seed=2)).resize(
        (9, 7), Image.Resampling.BILINEAR
    )
    np.testing.assert_array_equal(source[2]["image"], np.asarray(image)[1:6, 2:7])


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp"])
@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty"])
def test_a_damaged_image_is_named(suffix: str, damage: str, tmp_path: Path) -> None:
    for index in range(3):
        _save(tmp_path / "train" / "a" / f"{index}{suffix}", _noise(90, 90))
    file = tmp_path / "train" / "a" / f"1{suffix}"
    content = file.read_bytes()
    damaged = {"truncated": content[: len(content) // 2], "empty": b""}
    file.write_bytes(damaged.get(damage, b"not an image"))
    source = load_source(f"folder:{tmp_path}", "train")
    assert source[0]["label"] == 0
    for read in (lambda: source[1], lambda: as_arrays(source)):
        message = _one_line(read)
        assert message.startswith(str(file))
        assert "replace or delete it" in message


def test_what_a_folder_may_lack(tmp_path: Path) -> None:
    name = f"folder:{tmp_path}"
    train = tmp_path / "train"
    missing = _one_line(lambda: load_source(f"{name}/nowhere", "train"))
    assert str(tmp_path / "nowhere" / "train") in missing
    train.mkdir()
    assert str(train) in _one_line(lambda: load_source(name, "train"))
    (train / "ant").mkdir()
    assert str(train / "ant") in _one_line(lambda: load_source(name, "train"))
    _save(train / "ant" / "1.png", _noise(4, 4))
    message = _one_line(lambda: load_source(name, "test"))
    assert str(tmp_path / "validation") in message
    _save(tmp_path / "test" / "ants" / "1.png", _noise(4, 4))
    message = _one_line(lambda: load_source(name, "test"))
    assert str(tmp_path / "test" / "ants") in message


@pytest.mark.skipif(
    not (REAL_DATA / "hymenoptera").is_dir(), reason="needs ../shared/data/hymenoptera"
)
def test_photographs() -> None:
    source = load_source(f"folder:{REAL_DATA / 'hymenoptera'}", "test", image_size=64)
    images, labels = as_arrays(source)
    assert source.classes == ("ants", "bees")
    assert images.shape == (153, 64, 64, 3)
    np.testing.assert_array_equal(np.bincount(labels), [70, 83])
    whole = load_source(f"folder:{REAL_DATA / 'hymenoptera'}", "train")
    assert len(whole) == 244
    assert whole[0]["image"].shape != whole[1]["image"].shape


# tfds

needs_tfds = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow_datasets") is None,
    reason="needs tensorflow_datasets",
)
needs_prepared = pytest.mark.skipif(
    not (REAL_DATA / "tfds").is_dir(), reason="needs ../shared/data/tfds"
)


@needs_tfds
def test_unprepared_and_unknown_tfds_names(tmp_path: Path) -> None:
    load = lambda name: load_source(name, "train", data_dir=str(tmp_path))  # noqa: E731
    message = _one_line(lambda: load("tfds:imagenet2012"))
    assert "pip install -e '.[prepare]'" in message
    assert "tfds build imagenet2012 --file_format=array_record" in message
    assert str(tmp_path) in message
    message = _one_line(lambda: load("tfds:cifar1O"))
    assert "did you mean" in message
    assert "cifar10" in message


@needs_tfds
@needs_prepared
def test_prepared_data_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TFDS_DATA_DIR", str(REAL_DATA / "tfds"))
    images, _ = as_arrays(load_source("tfds:mnist", "test", limit=500))
    assert images.shape == (500, 28, 28, 1)
    source = load_source("tfds:cifar10", "train")
    assert len(source) == 50_000
    assert source.classes[:3] == ("airplane", "automobile", "bird")
    import tensorflow_datasets as tfds

    plain = tfds.data_source("cifar10", split="train", data_dir=REAL_DATA / "tfds")
    for index in 0, 1, 49_999:
        np.testing.assert_array_equal(source[index]["image"], plain[index]["image"])
        assert source[index]["label"] == plain[index]["label"]
    versioned = load_source("tfds:cifar10/3.0.2", "test", image_size=8)
    assert versioned[9_999]["image"].shape == (8, 8, 3)
    cropped = load_source("tfds:cifar10/3.0.2", "train", image_size=24, resize=32)
    np.testing.assert_array_equal(cropped[1]["image"], source[1]["image"][4:-4, 4:-4])


@pytest.mark.long
@needs_tfds
@needs_prepared
def test_all_of_cifar10() -> None:
    for split, count in ("train", 5000), ("test", 1000):
        source = load_source("tfds:cifar10", split, data_dir=str(REAL_DATA / "tfds"))
        images, labels = as_arrays(source)
        np.testing.assert_array_equal(np.bincount(labels), [count] * 10)
        mean = images.mean((0, 1, 2), np.float64) / 255
        np.testing.assert_allclose(mean, (0.4914, 0.4822, 0.4465), atol=5e-3)
