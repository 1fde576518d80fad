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

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from flaxcnn.errors import FlaxcnnError
from flaxcnn.registry import create_model, model_info
from flaxcnn.structure import variable_shapes

Variables = dict[str, Any]
Path = tuple[str, ...]

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
        one inside, under "state_dict" or "model". Prefixes `module.` go, torchvision's
        old keys of DenseNet are translated, auxiliary heads are left out unless the
        model has them.
      **fields: the model's fields where they differ from its row's (`num_classes=10`).

    Returns:
      {"params": ..., "batch_stats": ...} of float32 numpy arrays.

    Raises:
      FlaxcnnError: keys are missing, unexpected, of another shape or not finite: all of
        them.
    """
    return unflatten_dict(convert(name, _template(name, fields), state_dict))


def convert(
    name: str, template: Mapping[Path, Any], state_dict: Mapping[str, Any],
    source: object = "the state_dict",
) -> dict[Path, np.ndarray]:  # fmt: skip
    """As `from_torch`, for the variables of `template`: leaves with shapes, by path.

    The message of an error begins with `source`.
    """
    rest = todays_keys(state_dict)
    variables, wrong = {}, []
    for path, leaf in template.items():
        key = torch_key(path)
        if key not in rest:
            wrong.append(f"missing {key}")
            continue
        try:
            array = _float32(rest.pop(key))
        except (TypeError, ValueError):
            wrong.append(f"{key} is no array of numbers")
            continue
        variables[path] = _to_flax(array, path[-1], leaf.shape)
        if variables[path].shape != leaf.shape:
            expected = torch_shape(path, leaf)
            wrong.append(f"{key} has shape {array.shape}, not {expected}")
        elif not np.isfinite(array).all():
            wrong.append(f"{key} has values that are not finite")
    unexpected = [key for key in rest if not OPTIONAL.search(key)]
    wrong += [f"unexpected {k if k.isprintable() else repr(k)}" for k in unexpected]
    if wrong:
        raise FlaxcnnError(
            f"{source} is not {name}'s: {'; '.join(wrong)}; is it of another model, or "
            "are num_classes or aux_logits others?"
        )
    return variables


def to_torch(name: str, variables: Variables, **fields: Any) -> dict[str, np.ndarray]:
    """The state_dict (numpy arrays by torch's keys) of a model's variables.

    The inverse of `from_torch`, with the same fields and errors.
    """
    state_dict = as_state_dict(variables)
    convert(name, _template(name, fields), state_dict)
    return state_dict


def as_state_dict(variables: Variables) -> dict[str, np.ndarray]:
    """The arrays by torch's keys, whatever the model."""
    flat = flatten_dict(variables)
    return {torch_key(p): _to_torch(np.asarray(x), p[-1]) for p, x in flat.items()}


def torch_key(path: Path) -> str:
    """torch's key of the variable ("params", "layer1.0", "conv1", "kernel")."""
    _, *modules, leaf = path
    return ".".join([*modules, LEAVES.get(leaf, leaf)])


def torch_shape(path: Path, leaf: Any) -> tuple[int, ...]:
    """torch's shape of a variable of leaf's shape."""
    return _to_torch(np.broadcast_to(False, leaf.shape), path[-1]).shape


def todays_keys(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays by the keys that torchvision gives them now."""
    if not isinstance(state_dict, Mapping):
        raise FlaxcnnError(
            f"a {type(state_dict).__name__} is no state_dict; give model.state_dict()"
        )
    for wrapper in ("state_dict", "model"):
        if isinstance(state_dict.get(wrapper), Mapping):
            state_dict = state_dict[wrapper]
    arrays: dict[str, Any] = {}
    for old, array in state_dict.items():
        key = OLD_DENSENET.sub(r"\1\2.", str(old).removeprefix("module."))
        if key in arrays:
            raise FlaxcnnError(f"the state_dict has {key} twice, once as {old!r}")
        arrays[key] = array
    return arrays


def _template(name: str, fields: dict[str, Any]) -> dict[Path, Any]:
    model = create_model(name, **fields)
    return flatten_dict(variable_shapes(model, model_info(name).input_size))


def _float32(array: Any) -> np.ndarray:
    """A copy, of a numpy array or a torch tensor of any type on any device."""
    if hasattr(array, "detach"):
        array = array.detach().cpu()
        array = array if array.is_complex() else array.float()
    array = np.asarray(array)
    if np.iscomplexobj(array):
        raise TypeError("a complex array")
    return array.astype(np.float32)


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
