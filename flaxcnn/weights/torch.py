"""torch state_dicts to and from Flax variables, by one rule for every model.

Modules carry the keys of torch: the path of a parameter, joined by dots, is its key
but for the last word. Kernels change their layout, nothing else does; batch statistics
are torch's own. The Linear after a flatten is a `MapDense` here: its matrix is a kernel
[H, W, C, F], whose inputs torch has in the order C, H, W.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from flaxcnn.errors import FlaxcnnError
from flaxcnn.registry import create_model, model_info

Variables = dict[str, Any]

LEAVES = {  # flax: torch
    "kernel": "weight",
    "map_kernel": "weight",
    "scale": "weight",
    "mean": "running_mean",
    "var": "running_var",
}
# torch's counters for cumulative averages, and the auxiliary heads.
OPTIONAL = re.compile(r"\.num_batches_tracked$|^(aux\d|AuxLogits)\.")
OLD_DENSENET = re.compile(r"(\.denselayer\d+\.(?:norm|conv))\.([12])\.")


def from_torch(name: str, state_dict: Mapping[str, Any], **fields: Any) -> Variables:
    """Variables of a registered model from torch's state_dict of the same network.

    Args:
      name: registered name.
      state_dict: torch tensors or numpy arrays by torch's keys; or a checkpoint with
        one inside, under "state_dict". Prefixes `module.` go, torchvision's old keys of
        DenseNet are translated, auxiliary heads are left out unless the model has them.
      **fields: the model's fields where they differ from its row's (`num_classes=10`).

    Returns:
      {"params": ..., "batch_stats": ...} of float32 numpy arrays.

    Raises:
      FlaxcnnError: keys are missing, unexpected or of another shape: all of them.
    """
    rest = _todays_keys(state_dict)
    variables, wrong = {}, []
    for path, leaf in _template(name, fields).items():
        key = _key(path)
        if key not in rest:
            wrong.append(f"missing {key}")
            continue
        array = np.asarray(rest.pop(key)).astype(np.float32)  # always a copy
        variables[path] = _to_flax(array, path[-1], leaf.shape)
        if variables[path].shape != leaf.shape:
            expected = _to_torch(np.empty(leaf.shape), path[-1]).shape
            wrong.append(f"{key} has shape {array.shape}, not {expected}")
    wrong += [f"unexpected {key}" for key in rest if not OPTIONAL.search(key)]
    if wrong:
        raise FlaxcnnError(
            f"the state_dict is not {name}'s: {'; '.join(wrong)}; is it of another "
            "model, or are num_classes or aux_logits others?"
        )
    return flax.traverse_util.unflatten_dict(variables)


def to_torch(name: str, variables: Variables) -> dict[str, np.ndarray]:
    """The state_dict (numpy arrays by torch's keys) of a model's variables.

    The inverse of `from_torch`.
    """
    flat = flax.traverse_util.flatten_dict(variables)
    return {_key(path): _to_torch(np.asarray(a), path[-1]) for path, a in flat.items()}


def _todays_keys(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays by the keys that torchvision gives them now."""
    arrays = state_dict.get("state_dict", state_dict)
    return {
        OLD_DENSENET.sub(r"\1\2.", key.removeprefix("module.")): array
        for key, array in arrays.items()
    }


def _template(name: str, fields: dict[str, Any]) -> dict[tuple[str, ...], Any]:
    model = create_model(name, **fields)
    x = jnp.zeros((1, *model_info(name).input_size))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))
    return flax.traverse_util.flatten_dict(shapes)


def _key(path: tuple[str, ...]) -> str:
    _, *modules, leaf = path
    return ".".join([*modules, LEAVES.get(leaf, leaf)])


def _to_flax(array: np.ndarray, leaf: str, shape: tuple[int, ...]) -> np.ndarray:
    if leaf == "map_kernel" and array.shape == (shape[3], math.prod(shape[:3])):
        array = array.reshape(shape[3], shape[2], *shape[:2])
    if array.ndim == 4:
        return array.transpose(2, 3, 1, 0)
    return array.T


def _to_torch(array: np.ndarray, leaf: str) -> np.ndarray:
    if array.ndim == 4:
        array = array.transpose(3, 2, 0, 1)
        return array.reshape(len(array), -1) if leaf == "map_kernel" else array
    return array.T
