"""What `config.transfer` makes of a run: where it starts, and what it trains."""

import dataclasses
import json
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax.traverse_util import unflatten_dict
from ml_collections import ConfigDict

from flaxcnn.data.pipeline import (
    DEVICE_LIMIT,
    Data,
    DevicePipeline,
    HostPipeline,
    make_gather,
)
from flaxcnn.errors import FlaxcnnError
from flaxcnn.structure import variable_shapes
from flaxcnn.train.mesh import JitDevices
from flaxcnn.train.optim import check_mask
from flaxcnn.train.state import split_params
from flaxcnn.train.workdir import shown
from flaxcnn.transfer import CachedTrunk, FrozenTrunk, parameter_mask
from flaxcnn.weights.pretrained import (
    WeightsFile,
    fitted_preprocess,
    model_name,
    open_weights,
    take,
)
from flaxcnn.xla import compiler_options


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is trained.

    Attributes:
      network: what stands for the model in the steps.
      trained: the parameters that are, a regular expression over whole paths.
      lr_factors: of `config.optim`, with expressions for masks.
      report: a line for the log.
    """

    network: Any
    trained: str
    lr_factors: list[tuple[str, float]]
    report: str


def make_plan(
    config: ConfigDict, model: nn.Module, image_shape: tuple[int, int, int]
) -> Plan:
    """The plan of a run with images [H, W, C].

    Raises:
      FlaxcnnError: a mask that is none, or layers that are not there.
    """
    optim, transfer = config.optim, config.transfer
    params = variable_shapes(model, image_shape)["params"]
    trained = parameter_mask(transfer.train, model, image_shape)
    check_mask(f"config.transfer.train={transfer.train!r}", trained, params)
    chosen, frozen = split_params(params, trained)
    if optim.weight_decay:
        where = f"config.optim.decay_mask={optim.decay_mask!r}"
        check_mask(where, optim.decay_mask, chosen)
    factors = []
    for words, factor in optim.lr_factors:
        mask = parameter_mask(words, model, image_shape)
        check_mask(f"config.optim.lr_factors: {words!r}", mask, chosen)
        factors.append((mask, factor))
    network: Any = model
    if transfer.cache_features:
        network = CachedTrunk(model, image_shape)
    elif frozen and transfer.frozen == "eval":
        network = FrozenTrunk(model, image_shape, trained)
    numbers, others = (
        sum(x.size for x in jax.tree.leaves(part)) for part in (chosen, frozen)
    )
    report = f"training {numbers:,} of {numbers + others:,} parameters"
    if others and not transfer.init_from:
        report += "; the others stay random: config.transfer.init_from is empty"
    return Plan(network, trained, factors, report)


def load_start(
    config: ConfigDict, model: nn.Module, data: Data
) -> tuple[dict[str, Any], Data, list[str]]:
    """The variables of `config.transfer.init_from`.

    Returns:
      (variables, data, report): without those of a new head; the data with the
      preprocessing of the file, if that was fitted; lines for the log.

    Raises:
      FlaxcnnError: a file that is none, or does not fit.
    """
    if not config.transfer.init_from:
        return {}, data, []
    file = open_weights(config.transfer.init_from)
    name = model_name(file, config.model.name)
    classes = file.facts.get("classes")
    keep_head = None if classes in (None, list(data.classes)) else False
    loaded, new = take(file, name, model, data.image_shape, keep_head=keep_head)
    count = sum(x.size for x in loaded.values())
    line = f"loaded {len(loaded)} arrays, {count:,} numbers, from {shown(file.path)}"
    if new:
        line += f"; new: {', '.join('/'.join(path[1:]) for path in new)}"
    elif classes is None:
        line += "; its head too, of as many classes, whose names it does not tell"
    if fitted := fitted_preprocess(file, data.preprocess.kind):
        data = dataclasses.replace(data, preprocess=fitted)
    return unflatten_dict(loaded), data, [line, *_differences(file, model, data)]


def _differences(file: WeightsFile, model: nn.Module, data: Data) -> Iterator[str]:
    """What the weights were trained with, where this run has something else."""
    pairs = {
        f"model.{key}": (value, getattr(model, key, value))
        for key, value in file.facts.get("fields", {}).items()
        if key != "num_classes"
    }
    kind = data.preprocess.kind
    pairs["data.preprocess"] = (file.facts.get("preprocess", kind), kind)
    for key, (theirs, ours) in pairs.items():
        if json.dumps(theirs) != json.dumps(ours):  # which makes tuples lists
            yield f"the weights were trained with config.{key}={theirs!r}, not {ours!r}"


def cache_features(
    network: CachedTrunk, variables: Any, data: Data, batch_size: int
) -> tuple[Data, str]:
    """The data with the features of every image in place of the images; a line to log.

    Args:
      network: whose trunk gives the features.
      variables: of the whole model.
      data: of images.
      batch_size: of the trunk's pass, over all devices.

    Raises:
      FlaxcnnError: the features of a split would take more than 2 GiB.
    """
    started = time.perf_counter()
    devices = JitDevices()
    gather = make_gather(data.preprocess.kind, devices.constrain)

    def run(variables: Any, resident: Any, feeds: Any) -> tuple[jax.Array, jax.Array]:
        batch = gather(resident, {key: x[0] for key, x in feeds.items()})
        return network.features(variables, batch["image"]), batch["label"]

    program = jax.jit(
        run, out_shardings=devices.replicated, compiler_options=compiler_options()
    )
    variables = devices.replicate(variables)
    arrays = devices.replicate({"preprocess": data.preprocess.arrays})

    def of(split: DevicePipeline | HostPipeline, examples: int) -> DevicePipeline:
        images = split.in_order(batch_size)
        resident = {**devices.replicate(images.resident), **arrays}
        example = devices.shard(images.example())
        row = jax.eval_shape(program, variables, resident, example)[0]
        size = row.size // len(row) * row.dtype.itemsize * examples
        if size > DEVICE_LIMIT:
            raise FlaxcnnError(
                f"config.transfer.cache_features: features of {examples:,} images, "
                f"{list(row.shape[1:])} each, take {size / 2**30:.1f} GiB; set it to "
                "false, or config.data.limit"
            )
        parts = []
        for step in range(-(-examples // batch_size)):
            feeds = devices.shard(images.feeds(range(step, step + 1)))
            parts.append(jax.device_get(program(variables, resident, feeds)))
        features, labels = map(np.concatenate, zip(*parts, strict=True))
        return DevicePipeline(features[:examples], labels[:examples], split.order)

    train = of(data.train, data.train_examples)
    test = of(data.test, data.test_examples)
    count, *shape = train.resident["image"].shape
    report = (
        f"features {shape} of {count + data.test_examples:,} images in "
        f"{time.perf_counter() - started:.1f} s"
    )
    return dataclasses.replace(data, train=train, test=test), report
