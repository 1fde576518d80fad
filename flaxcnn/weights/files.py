"""Files of weights: the native one, and those of others.

The native file is a safetensors file with everything that prediction needs. Tensors are
named by their path in the variables ("params/conv1/kernel"), those of the preprocessing
by "preprocess/...". The metadata hold one JSON document.
"""

import io
import json
import lzma
import os
import tokenize
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

import flaxcnn
from flaxcnn.atomic import replacing
from flaxcnn.errors import FlaxcnnError
from flaxcnn.weights.pth import read_pth
from flaxcnn.weights.torch import as_state_dict

KEY = "flaxcnn"
FACTS = {
    "model": str, "fields": dict, "classes": list, "image_shape": list, "resize": int,
    "preprocess": str,
}  # fmt: skip
EXPANSION = 20  # weights hardly compress: what unpacks to more is no file of weights


def model_facts(
    name: str, fields: Mapping[str, Any], classes: Sequence[str],
    image_shape: Sequence[int], resize: int, preprocess: str,
) -> dict[str, Any]:  # fmt: skip
    """The metadata of a model file.

    Args:
      name: registered name of the model.
      fields: of the model.
      classes: their names in the order of the logits.
      image_shape: [H, W, C] of its input.
      resize: shorter side of an image before its central crop.
      preprocess: kind of the preprocessing.
    """
    return {
        "version": flaxcnn.__version__,
        "model": name,
        "fields": dict(fields),
        "classes": list(classes),
        "image_shape": list(image_shape),
        "resize": resize,
        "preprocess": preprocess,
    }


def save_model(
    path: Path, variables: dict[str, Any], metadata: dict[str, Any],
    preprocess: dict[str, np.ndarray],
) -> None:  # fmt: skip
    """Writes a model file, whole or not at all.

    Args:
      path: of the file.
      variables: {"params": ..., "batch_stats": ...}.
      metadata: JSON, as `model_facts` makes it (`Classifier.save` does both).
      preprocess: arrays of the fitted preprocessing.
    """
    tree = {**variables, "preprocess": preprocess}
    flat = flatten_dict(tree, sep="/")
    arrays = {key: np.ascontiguousarray(value) for key, value in flat.items()}
    with replacing(path) as part:
        part.write_bytes(save(arrays, {KEY: json.dumps(metadata)}))


def load_model(
    path: Path,
) -> tuple[dict[str, Any], dict[str, Any], dict[str, np.ndarray]]:
    """The (variables, metadata, preprocess) of a file that `save_model` wrote.

    Raises:
      FlaxcnnError: no such file, or not one of ours.
    """
    flat, metadata = _read_safetensors(path)
    if KEY not in metadata:
        raise FlaxcnnError(
            f"{path} is not a model file of flaxcnn; `flaxcnn convert` makes one of it"
        )
    return _unpack(path, flat, metadata)


def read_weights(
    path: Path,
) -> tuple[Mapping[str, Any], dict[str, Any], dict[str, np.ndarray]]:
    """The (state_dict, metadata, preprocess) of a file of weights of any kind.

    Kinds: the native one; else metadata and preprocess are empty, and it is
    `.safetensors` or `.npz` with torch's keys, as timm and Hugging Face have them, or
    a file of torch.save (`.pth`), maybe of a checkpoint with more in it.

    Raises:
      FlaxcnnError: no such file, or it is damaged or not of its kind.
    """
    if not os.path.isfile(path):  # Path.is_file raises for a name that is too long
        raise FlaxcnnError(
            f"no file {path}; check its name (a run's is model.safetensors)"
        )
    if path.suffix == ".safetensors":
        flat, metadata = _read_safetensors(path)
        if KEY not in metadata:
            return flat, {}, {}
        variables, facts, preprocess = _unpack(path, flat, metadata)
        return as_state_dict(variables), facts, preprocess
    state_dict = _read_npz(path) if path.suffix == ".npz" else read_pth(path)
    if not isinstance(state_dict, Mapping) or not all(map(_is_text, state_dict)):
        raise FlaxcnnError(
            f"{path} holds no state_dict; save model.state_dict() with torch.save"
        )
    return state_dict, {}, {}


def write_state_dict(path: Path, state_dict: Mapping[str, np.ndarray]) -> None:
    """Writes arrays by torch's keys: `.npz`, or `.pth` where torch is installed.

    Raises:
      FlaxcnnError: another suffix, or no torch.
    """
    if path.suffix not in (".npz", ".pth"):
        raise FlaxcnnError(f"{path}: write .safetensors, .npz or .pth")
    with replacing(path) as part:
        if path.suffix == ".npz":
            with part.open("wb") as file:
                np.savez(file, **state_dict)  # type: ignore[arg-type]
            return
        try:
            import torch
        except ImportError:
            raise FlaxcnnError(
                f"writing {path} needs torch; `pip install torch`, or write .npz"
            ) from None
        arrays = {key: np.array(x, order="C") for key, x in state_dict.items()}
        buffer = io.BytesIO()  # a full disk is no OSError to torch
        torch.save({k: torch.from_numpy(x) for k, x in arrays.items()}, buffer)
        part.write_bytes(buffer.getbuffer())


def _read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    try:
        with safe_open(path, "numpy") as file:
            flat = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            return flat, file.metadata() or {}
    except FileNotFoundError:
        raise FlaxcnnError(
            f"no file {path}; training writes model.safetensors"
        ) from None
    except (SafetensorError, OSError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(path, error) from error  # AttributeError: types like float8


def _unpack(
    path: Path, flat: dict[str, np.ndarray], metadata: dict[str, str]
) -> tuple[dict[str, Any], dict[str, Any], dict[str, np.ndarray]]:
    try:
        facts = json.loads(metadata[KEY])
        _check(flat, facts)
        tree = unflatten_dict(flat, sep="/")
    except (ValueError, IndexError, RecursionError) as error:
        raise _damaged(path, error) from error
    preprocess = tree.pop("preprocess", {})
    return tree, facts, preprocess


def _check(flat: Mapping[str, np.ndarray], facts: Any) -> None:
    """ValueError, unless these can be from a file that `save_model` wrote."""
    if not isinstance(facts, dict):
        raise ValueError("its metadata are no object of JSON")
    for key, kind in FACTS.items():
        if not isinstance(facts.get(key, kind()), kind):
            raise ValueError(f"{key!r} in its metadata is no {kind.__name__}")
    if "name" in facts.get("fields", {}):
        raise ValueError("its metadata have a field 'name', which no model has")
    resize = facts.get("resize", 1)
    if resize < 1 or isinstance(resize, bool):
        raise ValueError("'resize' in its metadata is no number of pixels")
    shape = facts.get("image_shape", [1, 1, 1])
    if len(shape) != 3 or not all(isinstance(n, int) and n > 0 for n in shape):
        raise ValueError("'image_shape' in its metadata is not [H, W, C]")
    if not all(map(_is_text, facts.get("classes", []))):
        raise ValueError("'classes' in its metadata are no names")
    for key, array in flat.items():
        if not key.startswith(("params/", "batch_stats/", "preprocess/")):
            raise ValueError(f"an array {key!r} that is no variable")
        if key.startswith("preprocess/") and not np.isfinite(array).all():
            raise ValueError(f"{key!r} has values that are not finite")


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > EXPANSION * path.stat().st_size:
            raise FlaxcnnError(f"{path} unpacks to {size:,} bytes: no file of weights")
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except (
        zipfile.BadZipFile, zlib.error, lzma.LZMAError, OSError, ValueError, EOFError,
        MemoryError, RuntimeError, tokenize.TokenError,
    ) as error:  # fmt: skip
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> FlaxcnnError:
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return FlaxcnnError(
        f"{path} is damaged or no file of weights ({reason}); download or copy it again"
    )


def _is_text(key: Any) -> bool:
    return isinstance(key, str)
