"""What a trained network says of images: predictions and evaluations."""

import functools
import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import unflatten_dict
from scipy.special import logsumexp

from flaxcnn.data import preprocess as preprocessing
from flaxcnn.data.images import check_sizes, read_image
from flaxcnn.data.pipeline import EvalOrder, HostPipeline
from flaxcnn.data.preprocess import FITTED, Preprocess
from flaxcnn.data.sources import Source
from flaxcnn.errors import FlaxcnnError
from flaxcnn.fold import fold_batchnorm
from flaxcnn.registry import model_fields, model_info
from flaxcnn.train.steps import infer
from flaxcnn.weights.catalog import imagenet_classes
from flaxcnn.weights.files import model_facts, save_model
from flaxcnn.weights.pretrained import (
    WeightsFile,
    file_model,
    fitted_preprocess,
    model_name,
    open_weights,
    take,
)
from flaxcnn.xla import compiler_options


@dataclass(frozen=True)
class Classifier:
    """A network, its weights, and what an image needs on its way to it.

    Attributes:
      name: registered name.
      model: the network.
      variables: {"params", "batch_stats"}.
      classes: their names in the order of the logits.
      image_shape: [H, W, C] of its input.
      resize: shorter side of an image before its central crop.
      preprocess: fitted.
    """

    name: str
    model: nn.Module
    variables: dict[str, Any]
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    resize: int
    preprocess: Preprocess

    def logits(self, images: np.ndarray, flip: bool = False) -> jax.Array:
        """Logits [N, classes] of images, uint8 [N, H, W, C].

        With `flip` they are the mean of those of an image and of its mirror image.
        """
        return self._forward(self.variables, self.preprocess.arrays, images, flip)

    @functools.cached_property
    def _forward(self) -> Any:
        options = compiler_options()
        return jax.jit(self._apply, static_argnames="flip", compiler_options=options)

    def _apply(self, variables: Any, arrays: Any, images: Any, flip: bool) -> jax.Array:
        x = preprocessing.apply(self.preprocess.kind, arrays, images)
        return infer(self.model, variables, x, flip)

    def export(self, batch_size: int = 1) -> bytes:
        """The network with its weights as StableHLO, for CPU, CUDA and TPU.

        `jax.export.deserialize(data).call(images)` gives logits, float32 [batch_size,
        classes], of images, uint8 [batch_size, H, W, C] of `image_shape`: with jax, but
        without flax and this library. BatchNorm is folded.

        Raises:
          FlaxcnnError: no flatbuffers, by which jax writes it; a bad batch size.
        """
        if batch_size < 1:
            raise FlaxcnnError(f"batch_size={batch_size}; it must be at least 1")
        if importlib.util.find_spec("flatbuffers") is None:
            raise FlaxcnnError("export needs flatbuffers; pip install flatbuffers")
        variables = fold_batchnorm(self.model, self.variables, self.image_shape)
        forward = jax.jit(
            lambda images: self._apply(variables, self.preprocess.arrays, images, False)
        )
        images = jax.ShapeDtypeStruct((batch_size, *self.image_shape), jnp.uint8)
        exported = jax.export.export(forward, platforms=("cpu", "cuda", "tpu"))(images)
        return bytes(exported.serialize())

    def read(self, path: str | Path) -> np.ndarray:
        """An image file as the network takes it: uint8 [H, W, C].

        Raises:
          FlaxcnnError: it cannot be read.
        """
        size, _, channels = self.image_shape
        return read_image(path, size, max(size, self.resize), channels)

    def predict(
        self, images: np.ndarray, top: int = 5
    ) -> list[list[tuple[str, float]]]:
        """For each image its likeliest classes with their probabilities.

        Args:
          images: uint8 [N, H, W, C].
          top: how many classes.

        Raises:
          FlaxcnnError: they are not finite.
        """
        probabilities = np.asarray(jax.nn.softmax(self.logits(images)))
        self._check_finite(probabilities)
        best = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
        return [
            [(self.classes[k], float(row[k])) for k in chosen]
            for row, chosen in zip(probabilities, best, strict=True)
        ]

    def _check_finite(self, results: np.ndarray) -> None:
        if not np.isfinite(results).all():
            raise FlaxcnnError(
                f"{self.name}: outputs that are not finite; its weights, or those of "
                "its preprocessing, are damaged: download or train them again"
            )

    def save(self, path: Path) -> None:
        """Writes a model file that needs nothing else."""
        fields = {key: getattr(self.model, key) for key in model_fields(self.name)}
        facts = model_facts(
            self.name, fields, self.classes, self.image_shape, self.resize,
            self.preprocess.kind,
        )  # fmt: skip
        if self.classes == numbered(len(self.classes)):
            del facts["classes"]  # nobody named them
        save_model(path, jax.device_get(self.variables), facts, self.preprocess.arrays)

    def evaluate(
        self, source: Source, batch_size: int = 128, flip: bool = False
    ) -> dict[str, float]:
        """Loss and accuracies over all samples of a source, each counted once.

        Classes go by their names if the source has the same ones, else by number.

        Args:
          source: the samples.
          batch_size: images at a time.
          flip: as of `logits`.

        Returns:
          {"loss", "accuracy", "top5", "count"}: the mean cross-entropy, accuracies in
          [0, 1], and the number of samples.

        Raises:
          FlaxcnnError: the source has other classes, or images of another shape, or
            logits are not finite.
        """
        if source.num_classes != len(self.classes):
            raise FlaxcnnError(
                f"{source.name} has {source.num_classes} classes, {self.name} was "
                f"trained on {len(self.classes)}"
            )
        shape = source[0]["image"].shape
        if shape != self.image_shape:
            same = shape[2] == self.image_shape[2]
            cure = "give image_size" if same else "its weights are for other colours"
            raise FlaxcnnError(
                f"{source.name} has images of shape {list(shape)}, {self.name} takes "
                f"{list(self.image_shape)}; {cure}"
            )
        numbers = np.arange(len(self.classes))
        if sorted(source.classes) == sorted(self.classes):
            numbers = np.array([self.classes.index(name) for name in source.classes])
        sums = np.zeros(4)
        for images, labels, mask in _batches(source, min(batch_size, len(source))):
            logits = np.asarray(self.logits(images, flip), np.float64)[mask]
            self._check_finite(logits)
            labels = numbers[labels[mask]]
            right = logits[np.arange(len(logits)), labels]
            losses = logsumexp(logits, axis=1) - right
            hits = logits.argmax(axis=1) == labels
            hits5 = (logits > right[:, None]).sum(axis=1) < 5
            sums += losses.sum(), hits.sum(), hits5.sum(), len(labels)
        assert sums[3] == len(source), "not every sample once"
        loss, accuracy, top5 = sums[:3] / sums[3]
        return {"loss": loss, "accuracy": accuracy, "top5": top5, "count": sums[3]}


def load_classifier(
    source: str | Path,
    model: str | None = None,
    *,
    preprocess: str | None = None,
    image_size: int | None = None,
    resize: int | None = None,
    classes: Sequence[str] | None = None,
) -> Classifier:
    """A network for prediction, from `model.safetensors` of a run or other weights.

    What the file, or the catalogue of published weights, does not say, is taken from
    the arguments, which come first, or else from the model's row.

    Args:
      source: as of `open_weights`: a file, or "resnet50", "resnet50:V1".
      model: registered name.
      preprocess: a kind of `flaxcnn.data.preprocess`.
      image_size: side of the central crop in pixels.
      resize: shorter side before the crop; default: 8/7 of a crop of 224 or more.
      classes: names in the order of the logits; default: ImageNet's for 1000.

    Raises:
      FlaxcnnError: a file that does not fit, or that does not say enough.
    """
    file = open_weights(source)
    name = model_name(file, model)
    net, (height, width, channels) = file_model(file, name, None, {})
    if image_size:
        height = width = image_size
    if height != width:
        raise FlaxcnnError(
            f"{file.path} is for images of {height}x{width} pixels, which are not cut "
            "here; give the side of a square: --image_size=<pixels>"
        )
    default = height * 8 // 7 if height >= 224 else height
    if height == file.facts.get("image_shape", [0])[0]:
        default = file.facts.get("resize", default)
    check_sizes(height, resize)
    if not net.num_classes:
        raise FlaxcnnError(f"{file.path} has no classes: its {name} gives features")
    variables, new = take(file, name, net, (height, width, channels), keep_head=True)
    if new:
        raise FlaxcnnError(f"{file.path} has no classifier; train one, or load another")
    count = net.num_classes
    return Classifier(
        name=name,
        model=net,
        variables=jax.device_put(unflatten_dict(variables)),
        classes=_class_names(file, classes, count),
        image_shape=(height, width, channels),
        resize=resize or default,
        preprocess=_preprocess(file, name, preprocess),
    )


def _preprocess(file: WeightsFile, name: str, kind: str | None) -> Preprocess:
    kind = kind or file.facts.get("preprocess") or model_info(name).preprocess
    if fitted := fitted_preprocess(file, kind):
        return fitted
    if kind in FITTED:
        raise FlaxcnnError(
            f"{file.path} does not hold the {kind!r} preprocessing of {name}; give "
            "another: --preprocess=imagenet, unit, ..."
        )
    return preprocessing.fit(kind, np.zeros((0, 1, 1, 3), np.uint8))  # of constants


def _class_names(
    file: WeightsFile, given: Sequence[str] | None, count: int
) -> tuple[str, ...]:
    names = file.facts.get("classes") if given is None else given
    if names is None:
        imagenet = imagenet_classes()
        names = imagenet if count == len(imagenet) else numbered(count)
    if len(names) != count:
        raise FlaxcnnError(
            f"{file.path} has {count} classes, but there are {len(names)} names; give "
            "one a line, in the order of the classes"
        )
    return tuple(names)


def numbered(count: int) -> tuple[str, ...]:
    """Names for classes that have none."""
    return tuple(f"class {k}" for k in range(count))


def _batches(
    source: Source, batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(images, labels, mask) of all samples, the last batch filled up."""
    order = EvalOrder(len(source), batch_size)
    pipeline = HostPipeline(source, order)
    for step in range(len(order)):
        feed = pipeline.feeds(range(step, step + 1))
        yield feed["image"][0], feed["label"][0], feed["mask"][0] > 0
