"""The configuration: every key with its default, overrides, checks, durations.

A config file is a Python file with `get_config(arg) -> ConfigDict`, where `arg` is
what follows a colon on the command line. It starts from `default_config()`.
"""

import ast
import inspect
import math
import re
import runpy
from fractions import Fraction
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from flaxcnn.errors import FlaxcnnError, unknown
from flaxcnn.registry import model_fields

Duration = float | int | str

CHOICES = {
    "precision": ("fp32", "bf16"),
    "parallel": ("jit", "pmap"),
    "data.pipeline": ("auto", "device", "host"),
    "data.preprocess": ("unit", "standardize", "imagenet", "gcn_zca"),
    "optim.schedule": (
        "constant", "step", "cosine", "linear", "exponential", "onecycle", "plateau",
    ),
}  # fmt: skip


def default_config() -> ConfigDict:
    """All keys. A duration is a number of epochs or "N steps|epochs|examples"."""
    return ConfigDict(
        dict(
            # The registered name, and any of its fields beside it.
            model=dict(name="allcnn_c"),
            data=dict(
                name="digits",  # digits | tfds:<name> | folder:<path>
                dir="",  # of prepared tfds data sets; "": TFDS_DATA_DIR or tfds's own
                limit=0,  # the first n samples of each split; 0: all
                image_size=0,  # resize to a square of this size; 0: as they are
                pipeline="auto",  # device | host; auto: the device if the set is small
                preprocess="standardize",  # unit | standardize | imagenet | gcn_zca
                flip=False,  # mirror half of the images
                translate=0,  # shift by up to this many pixels, zero padded
                cutout=0,  # blank a square of this size
                mixup=0.0,  # alpha of Zhang et al., 2018; 0: off
                cutmix=0.0,  # alpha of Yun et al., 2019; 0: off
            ),
            batch_size=128,  # of all devices together
            epochs=1.0,
            examples=0,  # length in examples instead of epochs
            steps=0,  # length in steps instead of either
            optim=dict(
                name="sgd",  # any optimizer of optax or optax.contrib
                lr=0.1,
                momentum=0.9,  # for optimizers that have it
                nesterov=False,  # likewise
                weight_decay=0.0,  # L2; decoupled if the optimizer itself decays
                decay_mask=".*/kernel",  # parameters that decay, full match
                freeze="",  # parameters that stay as they are, full match
                clip=0.0,  # largest global norm of the gradient; 0: off
                schedule="constant",
                warmup="0 steps",  # linear, from 0
                milestones=(),  # durations; step: lr times gamma after each
                gamma=0.1,  # factor of step, exponential (per epoch), plateau
                patience="5 epochs",  # plateau
            ),
            label_smoothing=0.0,
            ema=0.0,  # decay of averaged parameters and statistics; 0: off
            grad_accum=1,  # micro-batches a step
            seed=0,
            precision="fp32",  # bf16: compute; parameters and statistics stay fp32
            parallel="jit",  # pmap: BatchNorm per device
            deterministic=False,  # bit-identical runs on a GPU too
            steps_per_call=0,  # steps fused into one call; 0: 1 on CPU, else 64
            log_every="1 epoch",
            eval_every="1 epoch",
            checkpoint_every="1 epoch",
            keep=2,  # newest checkpoints kept beside the best
            resume=True,  # continue the run in the workdir, if there is one
        )
    )


def load_config(spec: str, overrides: dict[str, str] | None = None) -> ConfigDict:
    """The config of "path/to/file.py[:arg]" with textual overrides applied.

    Raises:
      FlaxcnnError: no such file, argument, key or value; with the nearest names.
    """
    path, _, arg = spec.partition(":")
    if not Path(path).is_file():
        here = Path(path).parent
        files = [str(f) for f in here.glob("*.py")] if here.is_dir() else []
        raise unknown("config file", path, files)
    get_config = runpy.run_path(path).get("get_config")
    if get_config is None:
        raise FlaxcnnError(f"{path} has no function get_config(arg); define one")
    config = get_config(*([arg] if arg else []))
    # The model's and the optimizer's names first: they say which fields exist.
    for key, text in sorted(
        (overrides or {}).items(), key=lambda item: not item[0].endswith(".name")
    ):
        _override(config, key, text)
    check_config(config)
    return config


def parse_overrides(arguments: list[str]) -> dict[str, str]:
    """{"optim.lr": "0.1"} of ["--config.optim.lr=0.1"]."""
    overrides = {}
    for argument in arguments:
        match = re.fullmatch(r"--config\.([\w.]+)=(.*)", argument, re.DOTALL)
        if not match:
            raise FlaxcnnError(
                f"unknown argument {argument!r}; a config key is set by "
                "--config.<key>=<value>"
            )
        overrides[match[1]] = match[2]
    return overrides


def check_config(config: ConfigDict) -> None:
    """Raises FlaxcnnError for a key, name or value that cannot work."""
    given, known = flatten(config), _known_keys(config)
    for key in given:
        if key not in known:
            raise unknown("config key", key, known)
    for key, choices in CHOICES.items():
        if given[key] not in choices:
            raise unknown(f"value of config.{key}", str(given[key]), choices)
    for key in ("batch_size", "grad_accum", "keep"):
        if given[key] < 1:
            raise FlaxcnnError(f"config.{key}={given[key]}; it must be at least 1")
    if config.batch_size % config.grad_accum:
        raise FlaxcnnError(
            f"config.batch_size={config.batch_size} is not divisible by "
            f"config.grad_accum={config.grad_accum}"
        )


def flatten(config: ConfigDict) -> dict[str, Any]:
    """{"optim.lr": 0.1, ...}."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            flat.update({f"{key}.{k}": v for k, v in flatten(value).items()})
        else:
            flat[key] = value
    return flat


class Durations:
    """Converts durations to steps.

    Args:
      examples: number of training samples, one epoch.
      batch_size: samples a step.
    """

    def __init__(self, examples: int, batch_size: int):
        self.examples, self.batch_size = examples, batch_size

    def steps(self, duration: Duration) -> float:
        """Steps of "N steps", "N epochs", "N examples", or of a number of epochs."""
        match = re.fullmatch(
            r"\s*([\d._]+(?:e\d+)?)\s*(?:(step|epoch|example)s?)?\s*", str(duration)
        )
        if not match:
            raise FlaxcnnError(
                f"{duration!r} is no duration; write for example "
                '"500 steps", "2 epochs" or "10000 examples"'
            )
        number, unit = float(match[1]), match[2] or "epoch"
        per_unit = {"step": self.batch_size, "epoch": self.examples, "example": 1}
        return number * per_unit[unit] / self.batch_size

    def period(self, duration: Duration) -> Fraction:
        """Steps between two events, exactly.

        Raises:
          FlaxcnnError: not more than 0.
        """
        steps = Fraction(self.steps(duration)).limit_denominator(self.batch_size)
        if steps <= 0:
            raise FlaxcnnError(
                f'{duration!r} is no period; write for example "1 epoch"'
            )
        return steps

    def total(self, config: ConfigDict) -> int:
        """Steps of the whole run: from `steps`, else `examples`, else `epochs`."""
        steps = config.steps or math.ceil(
            self.steps(f"{config.examples} examples")
            if config.examples
            else self.steps(f"{config.epochs} epochs")
        )
        if steps < 1:
            raise FlaxcnnError("config.epochs and config.steps are 0: nothing to train")
        return steps


def optimizer_function(name: str) -> Any:
    """The function of optax or optax.contrib that makes the optimizer `name`."""
    import optax
    import optax.contrib

    found = {
        key: value
        for module in (optax.contrib, optax)
        for key, value in vars(module).items()
        if inspect.isfunction(value)
        and "learning_rate" in inspect.signature(value).parameters
    }
    if name not in found:
        raise unknown("optimizer", name, found)
    return found[name]


def _known_keys(config: ConfigDict) -> dict[str, Any]:
    """Every key that this config may have, with a value of its type."""
    known = flatten(default_config())
    for field, (_, value) in model_fields(config.model.name).items():
        known[f"model.{field}"] = value
    parameters = inspect.signature(optimizer_function(config.optim.name)).parameters
    for key, parameter in parameters.items():
        if key not in ("learning_rate", "mask", "weight_decay_mask"):
            known.setdefault(f"optim.{key}", parameter.default)
    return known


def _override(config: ConfigDict, key: str, text: str) -> None:
    known = _known_keys(config) if not key.endswith(".name") else flatten(config)
    if key not in known:
        raise unknown("config key", key, known)
    value = _parse(key, text, known[key])
    *sections, leaf = key.split(".")
    node = config
    for section in sections:
        node = node[section]
    with node.ignore_type():
        node[leaf] = value


def _parse(key: str, text: str, like: Any) -> Any:
    """`text` as a value of the type of `like`."""
    kind = type(like)
    try:
        if kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if kind in (int, float, str):
            return kind(text)
        value = ast.literal_eval(text)
        if kind is tuple:
            return tuple(value) if isinstance(value, tuple | list) else (value,)
        return value
    except (ValueError, KeyError, SyntaxError):
        article = "an" if kind is int else "a"
        raise FlaxcnnError(
            f"config.{key}={text!r} is not {article} {kind.__name__}; "
            f"for example {like!r}"
        ) from None
