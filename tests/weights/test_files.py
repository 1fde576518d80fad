"""The native weights file."""

import os

import numpy as np
import pytest

from flaxcnn.errors import FlaxcnnError
from flaxcnn.weights.files import load_model, save_model

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
    from safetensors.numpy import save_file

    save_file({"x": np.ones(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(FlaxcnnError, match=r"foreign\.safetensors is not a model file"):
        load_model(tmp_path / "foreign.safetensors")
