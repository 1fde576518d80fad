"""Pipelines: batch t is a function of (seed, t), on the device and from the host.

A pipeline hands the training program a small feed a step. For a set that lives on the
device the feed is the batch's indices; for a set that is read on the host it is the
images themselves. `gather` makes the batch of either, inside the program.
"""

import functools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from flaxcnn.data import preprocess
from flaxcnn.data.images import Crop, random_box
from flaxcnn.data.preprocess import Preprocess
from flaxcnn.data.sources import Source, as_arrays, check_shape, load_source

Feed = dict[str, np.ndarray]

DEVICE_LIMIT = 2 << 30  # bytes of a data set that "auto" keeps on the device
CROPS = 0xC207  # apart from other streams of the same seed
FIT_SAMPLES = 10_000  # of a larger set, to fit the preprocessing on


@dataclass(frozen=True)
class TrainOrder:
    """Which samples make up batch t.

    The stream of samples is one random permutation an epoch after the other, cut
    every `batch_size`: a batch may span two epochs, and every sample comes exactly
    once an epoch.
    """

    examples: int
    batch_size: int
    seed: int

    def __call__(self, step: int) -> Feed:
        """The indices of batch `step`: {"index": int32 [batch_size]}."""
        position = step * self.batch_size + np.arange(self.batch_size)
        epoch, place = np.divmod(position, self.examples)
        index = np.empty(self.batch_size, np.int32)
        for e in range(epoch[0], epoch[-1] + 1):
            index[epoch == e] = _permutation(self.seed, e, self.examples)[
                place[epoch == e]
            ]
        return {"index": index}


@dataclass(frozen=True)
class EvalOrder:
    """All samples in order; the last batch is filled up with masked ones."""

    examples: int
    batch_size: int

    def __call__(self, step: int) -> Feed:
        """{"index": int32 [batch_size], "mask": float32 [batch_size], 0 or 1}."""
        index = step * self.batch_size + np.arange(self.batch_size, dtype=np.int32)
        inside = index < self.examples
        mask = inside.astype(np.float32)
        return {"index": np.where(inside, index, 0), "mask": mask}

    def __len__(self) -> int:
        return -(-self.examples // self.batch_size)


@dataclass(frozen=True)
class RandomCrop:
    """The box of each sample: it follows from the seed and the place in the stream."""

    smallest: float  # share of the image's area
    seed: int

    def __call__(self, position: int) -> Crop:
        """As `images.random_box` for the sample at that position."""
        rng = np.random.default_rng([CROPS, self.seed, position])
        return functools.partial(random_box, smallest=self.smallest, rng=rng)


@functools.lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, examples: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(examples)


class DevicePipeline:
    """The whole split as uint8 on the device; feeds are indices.

    Attributes:
      resident: what `gather` reads, {"image": [n, H, W, C], "label": [n]}.
    """

    def __init__(
        self, images: np.ndarray, labels: np.ndarray, order: TrainOrder | EvalOrder
    ):
        self.resident = {"image": images, "label": labels}
        self.order = order

    def feeds(self, steps: range) -> Feed:
        """Feeds of consecutive steps, stacked: leaves [len(steps), batch, ...].

        `batch` is this process's part of the batch.
        """
        return _stack([_local(self.order(step)) for step in steps])

    def example(self) -> Feed:
        """A feed of one step, to compile with."""
        return self.feeds(range(1))

    def in_order(self, batch_size: int) -> "DevicePipeline":
        """The same samples, each once, one after the other."""
        images, labels = self.resident["image"], self.resident["label"]
        return DevicePipeline(images, labels, EvalOrder(len(labels), batch_size))


class HostPipeline:
    """Samples read and decoded on the host by threads, a few batches ahead."""

    def __init__(
        self, source: Source, order: TrainOrder | EvalOrder,
        crop: RandomCrop | None = None,
    ):  # fmt: skip
        self.resident: dict[str, np.ndarray] = {}
        self.source, self.order, self.crop = source, order, crop
        self.image_shape = source[0]["image"].shape
        self._next = -1
        self._batches: Iterator[Feed] = iter(())

    def feeds(self, steps: range) -> Feed:
        """As `DevicePipeline.feeds`, with the images and labels themselves."""
        if steps.start != self._next:
            self._batches = self._read_ahead(steps.start)
        self._next = steps.stop
        return _stack([next(self._batches) for _ in steps])

    def example(self) -> Feed:
        """A feed of one step, to compile with; nothing is read."""
        feed = _stack([_local(self.order(0))])
        shape = feed.pop("index").shape
        image = np.zeros((*shape, *self.image_shape), np.uint8)
        return {"image": image, "label": np.zeros(shape, np.int32), **feed}

    def in_order(self, batch_size: int) -> "HostPipeline":
        """As `DevicePipeline.in_order`."""
        return HostPipeline(self.source, EvalOrder(len(self.source), batch_size))

    def _read_ahead(self, start: int) -> Iterator[Feed]:
        import grain

        stop = len(self.order) if isinstance(self.order, EvalOrder) else 1 << 40
        threads = os.cpu_count() or 1
        ahead = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
        batches = grain.MapDataset.range(start, stop).map(self._load)
        return iter(batches.to_iter_dataset(ahead))

    def _load(self, step: int) -> Feed:
        feed, size = self.order(int(step)), self.order.batch_size
        feed = _local({**feed, "position": int(step) * size + np.arange(size)})
        places = zip(feed.pop("index"), feed.pop("position"), strict=True)
        images, labels = zip(*(self._read(*place) for place in places), strict=True)
        for image in images:
            check_shape(self.source.name, image, self.image_shape)
        return {"image": np.stack(images), "label": np.array(labels, np.int32), **feed}

    def _read(self, index: int, position: int) -> tuple[np.ndarray, int]:
        if self.crop is None:
            return self.source.read(int(index))
        return self.source.read(int(index), self.crop(int(position)))


def make_gather(kind: str, constrain: Callable[[Any], Any]) -> Callable[..., Any]:
    """`gather(resident, feed) -> batch`, inside the program.

    Args:
      kind: of the preprocessing, whose arrays are `resident["preprocess"]`.
      constrain: keeps the batch spread over the devices.

    Returns:
      The function; its batch has "image", preprocessed float32 [N, H, W, C],
      "label" [N] and, in evaluation, "mask" [N]. What is not uint8 is no image but
      features: they stay as they are.
    """

    def gather(resident: dict, feed: dict[str, jax.Array]) -> dict[str, jax.Array]:
        batch = dict(feed)
        if "index" in batch:
            index = batch.pop("index")
            batch["image"] = resident["image"][index]
            batch["label"] = resident["label"][index]
        batch = constrain(batch)
        if batch["image"].dtype == np.uint8:
            arrays = resident["preprocess"]
            batch["image"] = preprocess.apply(kind, arrays, batch["image"])
        return batch

    return gather


@dataclass(frozen=True)
class Data:
    """Both splits of a run, and what belongs to them."""

    train: DevicePipeline | HostPipeline
    test: DevicePipeline | HostPipeline
    preprocess: Preprocess
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    train_examples: int
    test_examples: int

    @property
    def eval_steps(self) -> int:
        assert isinstance(self.test.order, EvalOrder)
        return len(self.test.order)


def load_data(data: ConfigDict, batch_size: int, seed: int) -> Data:
    """Reads, fits and places what `config.data` describes.

    Raises:
      FlaxcnnError: data that are missing, unreadable or of different sizes.
    """
    load = functools.partial(
        load_source, data.name, data_dir=data.dir or None, limit=data.limit,
        image_size=data.image_size or None, resize=data.resize or None,
    )  # fmt: skip
    train, test = load("train"), load("test")
    shape = train[0]["image"].shape
    check_shape(test.name, test[0]["image"], shape)
    fits = (len(train) + len(test)) * int(np.prod(shape)) <= DEVICE_LIMIT
    crop = RandomCrop(data.random_crop, seed) if data.random_crop else None
    wanted = data.pipeline == "auto" and not crop  # whose images are new every time
    on_device = data.pipeline == "device" or (wanted and fits)
    fitted = data.preprocess in preprocess.FITTED
    if on_device or (fits and fitted):
        sample = train
    else:
        sample = _spread(train, FIT_SAMPLES if fitted else 1)
    images, labels = as_arrays(sample)
    orders = (
        TrainOrder(len(train), batch_size, seed),
        EvalOrder(len(test), batch_size),
    )
    pipelines: tuple[Any, Any] = (
        (DevicePipeline(images, labels, orders[0]),
         DevicePipeline(*as_arrays(test), orders[1]))
        if on_device
        else (HostPipeline(train, orders[0], crop), HostPipeline(test, orders[1]))
    )  # fmt: skip
    return Data(
        *pipelines,
        preprocess=preprocess.fit(data.preprocess, images),
        classes=train.classes,
        image_shape=shape,
        train_examples=len(train),
        test_examples=len(test),
    )


def _spread(source: Source, count: int) -> Source:
    """`count` samples from all over a source."""
    indices = np.linspace(0, len(source) - 1, count).astype(int)
    return Source(
        source.name, source.classes, count, lambda i: source.read(int(indices[i]))
    )


def _local(feed: Feed) -> Feed:
    """This process's part of a batch."""
    count, process = jax.process_count(), jax.process_index()
    return {key: np.split(x, count)[process] for key, x in feed.items()}


def _stack(feeds: list[Feed]) -> Feed:
    if len(feeds) == 1:  # no copy of a batch of photographs
        return {key: x[None] for key, x in feeds[0].items()}
    return {key: np.stack([feed[key] for feed in feeds]) for key in feeds[0]}
