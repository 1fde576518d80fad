"""Files of weights: the native one, and what is refused of all kinds."""

import io
import json
import os
import tracemalloc
import zipfile

import numpy as np
import pytest
from safetensors.numpy import save_file

import flaxcnn
from flaxcnn.errors import FlaxcnnError
from flaxcnn.weights.files import (
    load_model,
    model_facts,
    read_weights,
    save_model,
    write_state_dict,
)

VARIABLES = {
    "params": {
        "conv1": {"kernel": np.arange(6.0).reshape(1, 2, 3), "bias": np.ones(3)}
    },
    "batch_stats": {"bn": {"mean": np.float32([0.5])}},
}


def test_round_trip_is_exact(tmp_path):
    path = tmp_path / "model.safetensors"
    mean = {"mean": np.float32([0.1, 0.2])}
    save_model(path, VARIABLES, {"model": "nin", "classes": ["a", "é"]}, mean)
    variables, metadata, preprocess = load_model(path)
    assert variables.keys() == VARIABLES.keys()
    kernel = variables["params"]["conv1"]["kernel"]
    np.testing.assert_array_equal(kernel, VARIABLES["params"]["conv1"]["kernel"])
    assert kernel.dtype == np.float64
    np.testing.assert_array_equal(variables["batch_stats"]["bn"]["mean"], [0.5])
    assert metadata == {"model": "nin", "classes": ["a", "é"]}
    np.testing.assert_array_equal(preprocess["mean"], mean["mean"])
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
    assert os.stat(path).st_mode & 0o444 == 0o444 & ~current_umask()


def current_umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_files_that_are_not_ours(tmp_path):
    with pytest.raises(FlaxcnnError, match="no file"):
        load_model(tmp_path / "none.safetensors")
    broken = tmp_path / "broken.safetensors"
    save_model(broken, VARIABLES, {}, {})
    broken.write_bytes(broken.read_bytes()[:-4])
    with pytest.raises(FlaxcnnError, match=r"broken\.safetensors is damaged"):
        load_model(broken)
    save_file({"x": np.ones(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(FlaxcnnError, match=r"foreign\.safetensors is not a model file"):
        load_model(tmp_path / "foreign.safetensors")


# Native files that say something odd, and damaged files of others.


METADATA = model_facts("nin", {}, ("a", "b"), (8, 8, 3), 9, "unit")


def refusal(path):
    """The message that `read_weights` refuses a file with: one line, which names it."""
    with pytest.raises(FlaxcnnError) as error:
        read_weights(path)
    message = str(error.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def write_safetensors(path, metadata, **arrays):
    text = metadata if isinstance(metadata, str) else json.dumps(metadata)
    flat = {"params/conv/kernel": np.ones((1, 1, 2, 2), np.float32), **arrays}
    save_file(flat, path, {"flaxcnn": text})
    return path


@pytest.mark.parametrize(
    ("metadata", "part"),
    [
        ("", "JSONDecodeError"), ("{", "JSONDecodeError"), ("\0", "JSONDecodeError"),
        ("[" * 100_000, "RecursionError"), ("[]", "no object"), ("null", "no object"),
        ({"model": 5}, "'model'"), ({"model": ["nin"]}, "'model'"),
        ({"fields": 3}, "'fields'"), ({"classes": "ab"}, "'classes'"),
        ({"classes": [1, 2]}, "'classes'"), ({"image_shape": 8}, "'image_shape'"),
        ({"image_shape": [8, 8]}, "'image_shape'"),
        ({"image_shape": [8, -8, 3]}, "'image_shape'"),
        ({"image_shape": ["8", 8, 3]}, "'image_shape'"),
        ({"resize": "9"}, "'resize'"), ({"resize": 0}, "'resize'"),
        ({"resize": True}, "'resize'"), ({"preprocess": None}, "'preprocess'"),
        ({"fields": {"name": "nin"}}, "'name'"),
    ],
    ids=lambda value: str(value)[:30].replace("\0", "NUL"),
)  # fmt: skip
def test_metadata_that_are_none(tmp_path, metadata, part):
    good = write_safetensors(tmp_path / "good.safetensors", METADATA)
    assert read_weights(good)[1] == METADATA
    if isinstance(metadata, dict):
        metadata = {**METADATA, **metadata}
    path = write_safetensors(tmp_path / "a.safetensors", metadata)
    message = refusal(path)
    assert "is damaged or no file of weights" in message
    assert part in message
    with pytest.raises(FlaxcnnError, match="is damaged"):
        load_model(path)


@pytest.mark.parametrize(
    "key", ["x", "", "preprocess", "params", "params/conv", "state/conv/kernel"]
)
def test_native_arrays_that_are_no_variables(tmp_path, key):
    path = tmp_path / "a.safetensors"
    write_safetensors(path, METADATA, **{key: np.ones(1)})
    message = refusal(path)
    assert repr(key) in message or key == "params/conv"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_preprocessing_that_is_not_finite(tmp_path, value):
    """A ReLU may swallow NaN: the answers would be wrong, not NaN."""
    arrays = {"preprocess/mean": np.float32([0, value, 0])}
    path = write_safetensors(tmp_path / "a.safetensors", METADATA, **arrays)
    assert "'preprocess/mean' has values that are not finite" in refusal(path)


def test_the_version_is_in_the_file():
    assert METADATA["version"] == flaxcnn.__version__


def test_a_version_that_is_not_yet_known_still_loads(tmp_path):
    metadata = {**METADATA, "version": "99.0", "new": [{"a": 1}]}
    path = write_safetensors(tmp_path / "a.safetensors", metadata)
    assert read_weights(path)[1] == metadata


@pytest.fixture
def arrays():
    random = np.random.default_rng(0)
    return {f"conv{k}.weight": random.random((8, 4, 3, 3)) for k in range(8)}


def save_npz(path, arrays):
    np.savez(path, **arrays)


def save_compressed(path, arrays):
    np.savez_compressed(path, **arrays)


WRITERS = {
    ".npz": save_npz,
    ".compressed.npz": save_compressed,
    ".safetensors": lambda path, arrays: save_file(arrays, path),
    ".native.safetensors": lambda path, arrays: save_model(
        path, {"params": {k: {"kernel": x} for k, x in arrays.items()}}, METADATA, {}
    ),
}


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_truncated_file(tmp_path, arrays, suffix):
    path = tmp_path / f"a{suffix}"
    WRITERS[suffix](path, arrays)
    data = path.read_bytes()
    read, _, _ = read_weights(path)
    assert len(read) == 8
    cuts = {0, 1, 7, 8, 9, 30, 100, *range(0, len(data), len(data) // 50)}
    for cut in sorted({*cuts, *range(len(data) - 60, len(data), 7), len(data) - 1}):
        path.write_bytes(data[:cut])
        assert "is damaged or no file of weights" in refusal(path)
    path.write_bytes(data + b"\0")  # and one byte too many: the same arrays or refused
    try:
        again, _, _ = read_weights(path)
    except FlaxcnnError:
        return
    for key, array in read.items():
        np.testing.assert_array_equal(again[key], array)


@pytest.mark.parametrize("suffix", WRITERS)
def test_random_damage_is_refused_or_reads(tmp_path, arrays, suffix):
    """Whatever bytes change: arrays or a FlaxcnnError, no other exception."""
    path = tmp_path / f"a{suffix}"
    WRITERS[suffix](path, {key: x[:1, :1] for key, x in arrays.items()})
    data = path.read_bytes()
    random = np.random.default_rng(0)
    refused = []
    for _ in range(400):
        damaged = np.frombuffer(data, np.uint8).copy()
        where = random.integers(len(data), size=random.integers(1, 4))
        damaged[where] = random.integers(256, size=len(where))
        path.write_bytes(damaged)
        try:
            assert isinstance(read_weights(path)[0], dict)
        except FlaxcnnError as error:
            refused.append(str(error))
    assert 20 < len(refused) <= 400
    assert "\n" not in "".join(refused)


def test_pickled_objects_in_an_npz_are_refused(tmp_path):
    ran = tmp_path / "ran"

    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(ran),)

    path = tmp_path / "a.npz"
    np.savez(path, weight=np.array([Attack()], object))
    assert "allow_pickle" in refusal(path)
    assert not ran.exists()
    with np.load(path, allow_pickle=True) as attacked:  # it would have run
        attacked["weight"]
    assert ran.exists()


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, weight=np.zeros((1 << 22, 8), np.float32))
    assert path.stat().st_size < 1 << 20
    tracemalloc.start()
    try:
        assert "134,217,8" in refusal(path)  # bytes, and a header
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_an_npz_whose_header_asks_for_more_than_it_has(tmp_path):
    """Of 1 TB: refused without having them."""
    header = io.BytesIO()
    shape = {"descr": "<f4", "fortran_order": False, "shape": (1 << 38,)}
    np.lib.format.write_array_header_1_0(header, shape)
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weight.npy", header.getvalue() + bytes(64))
    assert "is damaged or no file of weights" in refusal(path)


def test_a_directory_or_a_page_in_place_of_a_file(tmp_path):
    for name in ("a.npz", "a.safetensors", "a.pth"):
        (tmp_path / name).mkdir()
        assert refusal(tmp_path / name).startswith("no file ")
        (tmp_path / name).rmdir()
        (tmp_path / name).write_text("<!DOCTYPE html>\n<html>404</html>\n")
        assert "download" in refusal(tmp_path / name)


def test_types_that_numpy_lacks_are_refused(tmp_path):
    """A network in float8 is quantised: its arrays are not its weights."""
    header = {"w": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}
    text = json.dumps(header).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"\x38\x38")
    assert "float8" in refusal(path)


def test_state_dicts_of_numpy_come_back(tmp_path, arrays):
    path = tmp_path / "a.npz"
    write_state_dict(path, arrays)
    read, facts, preprocess = read_weights(path)
    assert (facts, preprocess) == ({}, {})
    assert read.keys() == arrays.keys()
    for key, array in arrays.items():
        np.testing.assert_array_equal(read[key], array)
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]
    with pytest.raises(FlaxcnnError, match=r"write \.safetensors, \.npz or \.pth"):
        write_state_dict(tmp_path / "a.h5", arrays)


def test_headers_that_break_their_readers(tmp_path):
    """Each raises something else in numpy, lzma or safetensors."""
    shape = json.dumps([1] * 100 + [4])
    header = f'{{"x": {{"dtype": "F32", "shape": {shape}, "data_offsets": [0, 16]}}}}'
    deep = tmp_path / "deep.safetensors"
    deep.write_bytes(len(header).to_bytes(8, "little") + header.encode() + bytes(16))
    assert "dimension" in refusal(deep)

    braces = tmp_path / "braces.npz"
    with zipfile.ZipFile(braces, "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00\x40\x00" + b"{" * 63 + b"\n")
    refusal(braces)

    packed = tmp_path / "packed.npz"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("x.npy", np.random.default_rng(0).bytes(1000))
    content = bytearray(packed.read_bytes())
    content[60:500] = bytes(440)
    packed.write_bytes(content)
    refusal(packed)
