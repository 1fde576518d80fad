"""The native weights file: safetensors with everything that prediction needs.

Tensors are named by their path in the variables ("params/conv1/kernel"), those of the
preprocessing by "preprocess/...". The metadata hold one JSON document.
"""

import json
import os
from pathlib import Path
from typing import Any

import flax.traverse_util
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from flaxcnn.errors import FlaxcnnError

KEY = "flaxcnn"


def save_model(
    path: Path, variables: dict[str, Any], metadata: dict[str, Any],
    preprocess: dict[str, np.ndarray],
) -> None:  # fmt: skip
    """Writes a model file, whole or not at all.

    Args:
      path: of the file.
      variables: {"params": ..., "batch_stats": ...}.
      metadata: JSON: the model's name and fields, classes, preprocessing, version.
      preprocess: arrays of the fitted preprocessing.
    """
    tree = {**variables, "preprocess": preprocess}
    flat = flax.traverse_util.flatten_dict(tree, sep="/")
    arrays = {key: np.ascontiguousarray(value) for key, value in flat.items()}
    part = path.with_suffix(".part")
    part.write_bytes(save(arrays, {KEY: json.dumps(metadata)}))
    os.replace(part, path)


def load_model(
    path: Path,
) -> tuple[dict[str, Any], dict[str, Any], dict[str, np.ndarray]]:
    """The (variables, metadata, preprocess) of a file that `save_model` wrote.

    Raises:
      FlaxcnnError: no such file, or not one of ours.
    """
    try:
        with safe_open(path, "numpy") as file:
            metadata = json.loads((file.metadata() or {})[KEY])
            flat = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise FlaxcnnError(
            f"no file {path}; training writes model.safetensors"
        ) from None
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise FlaxcnnError(
            f"{path} is not a model file of flaxcnn ({type(error).__name__}: {error})"
        ) from error
    tree = flax.traverse_util.unflatten_dict(flat, sep="/")
    preprocess = tree.pop("preprocess", {})
    return tree, metadata, preprocess
