"""Preprocessing of uint8 images on the device: fitted once, applied inside jit."""

import contextlib
import hashlib
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flaxcnn.atomic import replacing
from flaxcnn.errors import FlaxcnnError, unknown

if TYPE_CHECKING:
    import jax

# Mean and std of values in [0, 1], channel by channel, or one for all of them.
CONSTANTS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "inception": ((0.5,), (0.5,)),
    "imagenet_255": ((0.48235, 0.45882, 0.40784), (1 / 255, 1 / 255, 1 / 255)),
}
CAFFE_MEAN = (103.939, 116.779, 123.68)  # of 0..255: blue, green, red
KINDS = ("unit", "standardize", *CONSTANTS, "caffe", "gcn_zca")
# What is fitted to a training set: its arrays, and how many axes each has.
FITTED = {"standardize": {"mean": 1, "std": 1}, "gcn_zca": {"mean": 1, "matrix": 2}}
GCN_SCALE = 55.0
ZCA_BIAS = 0.1
ZCA_LIMIT = 64 * 64 * 3
CHUNK = 2_000  # images: bounds the memory of a fit


@dataclass(frozen=True)
class Preprocess:
    """A fitted preprocessing: `apply(p.kind, p.arrays, images)`.

    `arrays` is a pytree of float32 arrays (empty for "unit"): pass it through jit as
    an argument and close over `kind`, a whitening matrix is no constant to compile in.
    """

    kind: str
    arrays: dict[str, np.ndarray]


def fit(kind: str, images: np.ndarray, cache_dir: Path | None = None) -> Preprocess:
    """Fit a preprocessing on the training images, uint8 [N, H, W, C].

    Kinds:
      `unit`: [0, 1].
      `standardize`: [0, 1], then minus mean [C], divided by std [C] of the images.
      `imagenet`: [0, 1], then the mean and std of torchvision's models.
      `inception`: [-1, 1], the input of Inception v1 to v4 as their authors trained it.
      `imagenet_255`: 0..255 less ImageNet's mean: torchvision's version of `caffe`.
      `caffe`: 0..255 less ImageNet's mean, channels in the order blue, green, red: the
        input of networks that were trained in caffe (VGG, SqueezeNet).
      `gcn_zca`: global contrast normalization, then ZCA whitening: mean [D] and
        matrix [D, D] for D = H W C. The input of All-CNN and NiN (arXiv:1412.6806,
        1312.4400) as pylearn2's make_cifar10_gcn_whitened.py defines it, on 0..255.
        Kept in `cache_dir` (default: `flaxcnn` in $XDG_CACHE_HOME or ~/.cache).

    Raises:
      FlaxcnnError: an unknown kind, or `gcn_zca` of images larger than 64x64x3.
    """
    if kind == "unit":
        return Preprocess(kind, {})
    if kind == "standardize":
        return Preprocess(kind, _channel_statistics(images))
    if kind in CONSTANTS:
        mean, std = np.array(CONSTANTS[kind], np.float32)
        return Preprocess(kind, {"mean": mean, "std": std})
    if kind == "caffe":
        return Preprocess(kind, {"mean": np.array(CAFFE_MEAN, np.float32)})
    if kind == "gcn_zca":
        return Preprocess(kind, _cached_zca(images, cache_dir or default_cache_dir()))
    raise unknown("preprocessing", kind, KINDS)


def apply(
    kind: str, arrays: Mapping[str, "jax.Array | np.ndarray"], images: "jax.Array"
) -> "jax.Array":
    """Preprocess images [N, H, W, C] of 0..255 (uint8 or float): float32, same shape.

    A pure function for use inside jit; `kind` is static, `arrays` may be traced.

    Raises:
      FlaxcnnError: an unknown kind, or images of another shape than those of the fit.
    """
    import jax.numpy as jnp
    from jax.lax import Precision

    if kind not in KINDS:
        raise unknown("preprocessing", kind, KINDS)
    x = images.astype(jnp.float32)
    if kind == "gcn_zca":
        x = x.reshape(len(x), -1)
        _check_size(kind, arrays["mean"].shape[0], x.shape[1], images.shape)
        x -= x.mean(axis=1, keepdims=True)
        norm = jnp.linalg.norm(x, axis=1, keepdims=True) / GCN_SCALE
        x = x / jnp.where(norm < 1e-8, 1.0, norm) - arrays["mean"]
        x = jnp.matmul(x, arrays["matrix"], precision=Precision.HIGHEST)
        return x.reshape(images.shape)
    if kind == "unit":
        return x / 255
    mean = arrays["mean"]
    if mean.shape[0] != 1:  # one value serves any number of channels
        _check_size(kind, mean.shape[0], images.shape[-1], images.shape)
    if kind == "caffe":
        return x[..., ::-1] - mean
    return (x / 255 - mean) / arrays["std"]


def default_cache_dir() -> Path:
    """`flaxcnn` in $XDG_CACHE_HOME or ~/.cache."""
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(root).expanduser() / "flaxcnn"


def _check_size(kind: str, fitted: int, given: int, shape: tuple[int, ...]) -> None:
    if fitted != given:
        again = "fit it again on such images"
        cure = again if kind in FITTED else "use standardize or unit"
        raise FlaxcnnError(
            f"preprocessing {kind!r} is for {fitted} values, images of shape "
            f"{list(shape[1:])} have {given}; {cure}"
        )


def _channel_statistics(images: np.ndarray) -> dict[str, np.ndarray]:
    """Exact: from the counts of the 256 values in each channel."""
    values = np.arange(256) / 255
    counts = np.zeros((256, images.shape[-1]))
    for part in _chunks(images):
        for channel, pixels in enumerate(np.moveaxis(part, -1, 0)):
            counts[:, channel] += np.bincount(pixels.ravel(), minlength=256)
    weights = counts / counts.sum(axis=0)
    mean = values @ weights
    std = np.sqrt((weights * (values[:, None] - mean) ** 2).sum(axis=0))
    std = np.where(std < 1e-8, 1, std)  # a constant channel becomes 0, not NaN
    return {"mean": mean.astype(np.float32), "std": std.astype(np.float32)}


def _chunks(images: np.ndarray) -> list[np.ndarray]:
    return [images[i : i + CHUNK] for i in range(0, len(images), CHUNK)]


def _gcn(images: np.ndarray) -> np.ndarray:
    """Global contrast normalization of uint8 [N, ...]: float64 [N, D] of norm 55."""
    x = images.reshape(len(images), -1).astype(np.float64)
    x -= x.mean(axis=1, keepdims=True)
    norm = np.linalg.norm(x, axis=1, keepdims=True) / GCN_SCALE
    return x / np.where(norm < 1e-8, 1, norm)


def _fit_zca(images: np.ndarray) -> dict[str, np.ndarray]:
    size = int(np.prod(images.shape[1:]))
    mean, gram = np.zeros(size), np.zeros((size, size))
    for part in _chunks(images):
        x = _gcn(part)
        mean += x.sum(axis=0)
        gram += x.T @ x
    mean /= len(images)
    covariance = gram / len(images) - np.outer(mean, mean)
    values, vectors = np.linalg.eigh(covariance + ZCA_BIAS * np.eye(size))
    matrix = (vectors / np.sqrt(values)) @ vectors.T
    return {"mean": mean.astype(np.float32), "matrix": matrix.astype(np.float32)}


def _cached_zca(images: np.ndarray, cache_dir: Path) -> dict[str, np.ndarray]:
    size = int(np.prod(images.shape[1:]))
    if size > ZCA_LIMIT:
        raise FlaxcnnError(
            f"gcn_zca on images of shape {list(images.shape[1:])} needs a matrix of "
            f"{size} x {size}; use images up to 64x64x3, or standardize"
        )
    digest = hashlib.sha256(f"gcn_zca {images.shape}".encode())
    digest.update(np.ascontiguousarray(images).data)
    file = cache_dir / f"gcn_zca-{digest.hexdigest()[:32]}.npz"
    try:
        with np.load(file) as stored:
            arrays = {"mean": stored["mean"], "matrix": stored["matrix"]}
        if arrays["matrix"].shape == (size, size):
            return arrays
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass  # absent or damaged: fit it
    arrays = _fit_zca(images)
    with contextlib.suppress(OSError):  # a full or read-only disk costs the cache only
        _write(file, arrays)
    return arrays


def _write(file: Path, arrays: dict[str, np.ndarray]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as part:
        np.savez(part, **arrays)  # type: ignore[arg-type]
