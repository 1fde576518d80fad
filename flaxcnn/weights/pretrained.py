"""Networks with weights: of a file of any kind, or published ones by name."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from flaxcnn.data.preprocess import FITTED, Preprocess
from flaxcnn.errors import FlaxcnnError, unknown
from flaxcnn.registry import create_model, list_models, model_info
from flaxcnn.structure import Shape, head_parameters, variable_shapes
from flaxcnn.weights.catalog import (
    Weights,
    fetch_weights,
    weights_named,
    weights_of_file,
)
from flaxcnn.weights.files import read_weights
from flaxcnn.weights.torch import (
    Variables,
    convert,
    todays_keys,
    torch_key,
    torch_shape,
)


@dataclass(frozen=True)
class WeightsFile:
    """The arrays of a file, and what is known about them.

    Attributes:
      path: where it is.
      state_dict: arrays by torch's keys.
      facts: what `save_model` was told, as far as it is known: "model", "fields",
        "classes", "image_shape", "resize", "preprocess".
      preprocess: the arrays of the fitted preprocessing.
      partial: what it lacks is drawn afresh.
    """

    path: Path
    state_dict: Mapping[str, Any]
    facts: dict[str, Any] = field(default_factory=dict)
    preprocess: dict[str, np.ndarray] = field(default_factory=dict)
    partial: bool = False


def open_weights(source: str | Path) -> WeightsFile:
    """Of a file, or of published weights: "resnet50", or one version, "resnet50:V1".

    Published weights are downloaded once; a file by its published name is known too.

    Raises:
      FlaxcnnError: no such file or name, no network, or not a file of weights.
    """
    path = Path(os.path.expanduser(source))  # Path.expanduser raises for ~nobody
    if os.path.isfile(path) or "/" in str(source) or path.suffix:
        published = weights_of_file(path.name)
    else:
        published = weights_named(str(source))
        path = fetch_weights(published)
    state_dict, facts, preprocess = read_weights(path)
    state_dict, partial = todays_keys(state_dict), False
    if published and not facts:
        facts, partial = _facts(published), published.top1 is None
    if partial:  # its classifier is there, but all NaN
        state_dict = {k: x for k, x in state_dict.items() if np.isfinite(x).all()}
    return WeightsFile(path, state_dict, facts, preprocess, partial)


def load_pretrained(
    name: str,
    path: str | Path | None = None,
    num_classes: int | None = None,
    **fields: Any,
) -> tuple[nn.Module, Variables]:
    """A model and its trained variables.

    Args:
      name: registered name, with the version of published weights after a colon if it
        is not the first: "resnet50", "resnet50:V1".
      path: a local file (.safetensors of ours or with torch's keys, .pth, .npz);
        without it published weights are downloaded, or found where torch put them.
      num_classes: if it is not the file's, the head is drawn afresh from seed 0; None:
        the file's; 0: without the head. The whole classifier is drawn for
        "vgg16:FEATURES", which has none.
      **fields: of the model, where they differ from the file's or the row's.

    Returns:
      (model, variables). Published weights take inputs as `model_info(name).weights`
      says; for a file of a run `flaxcnn.load_classifier` has its preprocessing.

    Raises:
      FlaxcnnError: no such model or file, no network, or weights that do not fit.
    """
    model, colon, version = name.partition(":")
    if path is not None and colon:
        raise FlaxcnnError(
            f"version {version!r} is of published weights, {path} is a file; leave one"
        )
    return restore(open_weights(path or name), model, num_classes, fields)


def restore(
    file: WeightsFile, name: str, num_classes: int | None = None,
    fields: Mapping[str, Any] | None = None,
) -> tuple[nn.Module, Variables]:  # fmt: skip
    """As `load_pretrained`, of a file that is open."""
    model, image_shape = file_model(file, name, num_classes, fields or {})
    keep = num_classes is None or num_classes == _num_classes(file, model, image_shape)
    loaded, new = take(file, name, model, image_shape, keep_head=keep)

    @jax.jit
    def fresh_head(key: jax.Array) -> dict[tuple[str, ...], jax.Array]:
        variables = model.init(key, jnp.zeros((1, *image_shape)), train=False)
        flat = flatten_dict(variables)
        return {path: flat[path] for path in new}

    head = jax.device_get(fresh_head(jax.random.key(0))) if new else {}
    return model, unflatten_dict({**loaded, **head})


def model_name(file: WeightsFile, given: str | None = None) -> str:
    """The registered name of the model that a file is of.

    Raises:
      FlaxcnnError: neither the file nor `given` says it, or they differ.
    """
    of = file.facts.get("model")
    name = given or of
    if name is None:
        raise FlaxcnnError(
            f"{file.path} does not say which model it is of; give it: --model=<name>"
        )
    if name not in list_models():
        raise unknown("model", name, list_models())
    if of not in (None, name):
        raise FlaxcnnError(f"{file.path} has weights of {of}, not of {name}; load {of}")
    return name


def file_model(
    file: WeightsFile, name: str, num_classes: int | None, fields: Mapping[str, Any]
) -> tuple[nn.Module, Shape]:
    """The model that a file is of, and the shape of its images [H, W, C].

    `num_classes` None: as many as the file has.
    """
    model_name(file, name)
    image_shape = tuple(file.facts.get("image_shape", model_info(name).input_size))
    fields = {**file.facts.get("fields", {}), **fields}
    if num_classes is not None:
        fields["num_classes"] = num_classes
    model = create_model(name, **fields)
    if "num_classes" not in fields:
        model = model.clone(
            num_classes=_num_classes(file, model, image_shape) or model.num_classes
        )
    return model, image_shape


def take(
    file: WeightsFile, name: str, model: nn.Module, image_shape: Shape,
    keep_head: bool | None = None,
) -> tuple[dict[tuple[str, ...], np.ndarray], list[tuple[str, ...]]]:  # fmt: skip
    """The variables of a model that a file has, and the parameters that it has not.

    Those are the head's, unless it is kept, and what a partial file lacks; all others
    must fit.

    Args:
      file: opened.
      name: of the model, for messages.
      model: the network.
      image_shape: of its input, [H, W, C].
      keep_head: None: if it is of as many classes.

    Returns:
      (variables by path, paths of the parameters of a new head).
    """
    head = _head(file, model, image_shape)
    template = flatten_dict(variable_shapes(model, image_shape))
    state_dict = dict(file.state_dict)
    if keep_head is None:
        keep_head = all(
            path in template
            and _shape(state_dict, torch_key(path)) == torch_shape(path, template[path])
            for path in head
        )
    if not keep_head:
        for path in head:
            state_dict.pop(torch_key(path), None)
    new = [] if keep_head else [path for path in head if path in template]
    if file.partial:
        new = [path for path in template if torch_key(path) not in state_dict]
    rest = {path: leaf for path, leaf in template.items() if path not in new}
    return convert(name, rest, state_dict, file.path), new


def fitted_preprocess(file: WeightsFile, kind: str) -> Preprocess | None:
    """What the weights' training images were fitted to, if that is of this kind."""
    arrays, needed = file.preprocess, FITTED.get(kind)
    if not needed or kind != file.facts.get("preprocess") or "mean" not in arrays:
        return None
    size = arrays["mean"].size
    fits = all(
        key in arrays and arrays[key].shape == (size,) * dimensions
        for key, dimensions in needed.items()
    )
    return Preprocess(kind, arrays) if fits else None


def _head(
    file: WeightsFile, model: nn.Module, image_shape: Shape
) -> list[tuple[str, ...]]:
    try:
        head = head_parameters(model, image_shape)
    except FlaxcnnError:
        raise
    except Exception as error:  # the fields of a damaged file may be anything
        raise FlaxcnnError(
            f"{file.path}: no {type(model).__name__} has the fields that it tells or "
            f"that were given ({error!r:.200}); correct them, or copy it again"
        ) from error
    return [("params", *path.split("/")) for path in head]


def _num_classes(file: WeightsFile, model: nn.Module, image_shape: Shape) -> int:
    """Of the head in the file; 0: it has none."""
    first, *_ = _head(file, model, image_shape)
    return next(iter(_shape(file.state_dict, torch_key(first))), 0)


def _shape(state_dict: Mapping[str, Any], key: str) -> tuple[int, ...]:
    return tuple(getattr(state_dict.get(key), "shape", ()))


def _facts(weights: Weights) -> dict[str, Any]:
    return {
        "model": weights.model,
        "classes": list(weights.classes),
        "image_shape": [weights.crop, weights.crop, 3],
        "resize": weights.resize,
        "preprocess": weights.preprocess,
    }
