"""Convolutional networks in JAX/Flax: models, a trainer, and their proof."""

import importlib
from typing import TYPE_CHECKING, Any

from flaxcnn.errors import FlaxcnnError
from flaxcnn.registry import Info, create_model, list_models, model_info, register

if TYPE_CHECKING:
    from flaxcnn.fold import fold_batchnorm
    from flaxcnn.inference import load_classifier
    from flaxcnn.macs import count_macs
    from flaxcnn.train.config import default_config, load_config
    from flaxcnn.train.loop import fit
    from flaxcnn.weights.files import load_model, save_model
    from flaxcnn.weights.pretrained import load_pretrained

__version__ = "0.1.0"

__all__ = [
    "FlaxcnnError",
    "Info",
    "count_macs",
    "create_model",
    "default_config",
    "fit",
    "fold_batchnorm",
    "list_models",
    "load_classifier",
    "load_config",
    "load_model",
    "load_pretrained",
    "model_info",
    "register",
    "save_model",
]

# Imported when first used: they need jax.
_LAZY = {
    "count_macs": "flaxcnn.macs",
    "default_config": "flaxcnn.train.config",
    "fit": "flaxcnn.train.loop",
    "fold_batchnorm": "flaxcnn.fold",
    "load_classifier": "flaxcnn.inference",
    "load_config": "flaxcnn.train.config",
    "load_model": "flaxcnn.weights.files",
    "load_pretrained": "flaxcnn.weights.pretrained",
    "save_model": "flaxcnn.weights.files",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'flaxcnn' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
