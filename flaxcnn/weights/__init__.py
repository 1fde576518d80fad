"""Weights: the native file format."""

from flaxcnn.weights.files import load_model, save_model

__all__ = ["load_model", "save_model"]
