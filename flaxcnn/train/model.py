"""The model of a run, and what its file says about it."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from flaxcnn.data.pipeline import Data
from flaxcnn.errors import FlaxcnnError
from flaxcnn.registry import create_model, model_fields, model_info
from flaxcnn.weights.files import model_facts


def build_model(config: ConfigDict, data: Data) -> nn.Module:
    """The config's model with as many classes as the data have."""
    fields = {k: v for k, v in config.model.items() if k != "name"}
    classes = fields.setdefault("num_classes", len(data.classes))
    if classes != len(data.classes):
        raise FlaxcnnError(
            f"config.model.num_classes={classes}, but {config.data.name} has "
            f"{len(data.classes)} classes; leave it out, it follows the data"
        )
    dtype = {"fp32": jnp.float32, "bf16": jnp.bfloat16}[config.precision]
    return create_model(config.model.name, **fields, dtype=dtype)


def aux_weights(config: ConfigDict, model: nn.Module) -> Mapping[str, float]:
    """Loss weights of the auxiliary heads that the config's model has."""
    if not getattr(model, "aux_logits", False):
        return {}
    return model_info(config.model.name).aux_weights


def model_metadata(config: ConfigDict, data: Data) -> dict[str, Any]:
    """What model.safetensors says about itself."""
    given = dict(config.model)
    fields = {k: v for k, (_, v) in model_fields(given.pop("name")).items()}
    facts = model_facts(
        config.model.name,
        {**fields, **given, "num_classes": len(data.classes)},
        data.classes,
        data.image_shape,
        config.data.resize or min(data.image_shape[:2]),
        data.preprocess.kind,
    )
    return {**facts, "data": config.data.name}
