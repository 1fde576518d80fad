"""Weights: files, torch's state_dicts, the catalogue of published ones."""

import importlib
from typing import TYPE_CHECKING, Any

from flaxcnn.weights.catalog import Weights, weights_of

if TYPE_CHECKING:
    from flaxcnn.weights.files import load_model, save_model
    from flaxcnn.weights.torch import from_torch, to_torch

__all__ = [
    "Weights",
    "from_torch",
    "load_model",
    "save_model",
    "to_torch",
    "weights_of",
]

# Imported when first used: they need jax.
_LAZY = {
    "from_torch": "flaxcnn.weights.torch",
    "load_model": "flaxcnn.weights.files",
    "save_model": "flaxcnn.weights.files",
    "to_torch": "flaxcnn.weights.torch",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'flaxcnn.weights' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
