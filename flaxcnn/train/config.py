"""The configuration: every key with its default, overrides, checks, durations.

A config file is a Python file with `get_config(arg) -> ConfigDict`, where `arg` is
what follows a colon on the command line. It starts from `default_config()`.
"""

import ast
import functools
import inspect
import math
import os
import re
import runpy
import traceback
from fractions import Fraction
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from flaxcnn.data.preprocess import KINDS
from flaxcnn.errors import FlaxcnnError, unknown
from flaxcnn.registry import model_fields

Duration = float | int | str

CHOICES = {
    "precision": ("fp32", "bf16"),
    "parallel": ("jit", "pmap"),
    "data.pipeline": ("auto", "device", "host"),
    "data.preprocess": KINDS,
    "transfer.frozen": ("eval", "train"),
    "optim.schedule": (
        "constant", "step", "cosine", "linear", "exponential", "onecycle", "plateau",
    ),
}  # fmt: skip

# The smallest value and, where there is one, the bound that is not reached.
RANGES = {
    "batch_size": (1, None),
    "grad_accum": (1, None),
    "keep": (1, None),
    "epochs": (0, None),
    "examples": (0, None),
    "steps": (0, None),
    "steps_per_call": (0, None),
    "seed": (0, 1 << 32),
    "ema": (0, 1),
    "label_smoothing": (0, 1),
    "data.random_crop": (0, 1),
    "data.translate": (0, None),
    "data.cutout": (0, None),
    "data.mixup": (0, None),
    "data.cutmix": (0, None),
    "optim.lr": (0, None),
    "optim.weight_decay": (0, None),
    "optim.clip": (0, None),
    "optim.gamma": (0, None),
}
LENGTHS = ("steps", "examples", "epochs")

# Of optax, what needs more than gradients, takes no schedule, has an argument of a
# schedule's name (noisy_sgd), or other parameters to test than it trains.
NOT_OPTIMIZERS = (
    "lbfgs", "noisy_sgd", "optimistic_adam", "rprop", "schedule_free_adamw",
    "schedule_free_sgd", "sm3", "sophia",
)  # fmt: skip


def default_config() -> ConfigDict:
    """All keys. A duration is a number of epochs or "N steps|epochs|examples".

    In a file it is text, "5", where the default is.
    """
    return ConfigDict(
        dict(
            # The registered name, and any of its fields beside it.
            model=dict(name="allcnn_c"),
            data=dict(
                name="digits",  # digits | tfds:<name> | folder:<path>
                dir="",  # of prepared tfds data sets; "": TFDS_DATA_DIR or tfds's own
                limit=0,  # the first n samples of each split; 0: all
                image_size=0,  # the central square, of this size; 0: as they are
                resize=0,  # shorter side before that crop; 0: image_size
                pipeline="auto",  # device | host; auto: the device if the set is small
                preprocess="standardize",  # unit | imagenet | inception | gcn_zca | ...
                # Smallest share of the area of a random crop, resized to image_size, in
                # place of the central one (0.08 is usual); 0: off. Read on the host.
                random_crop=0.0,
                flip=False,  # mirror half of the images
                translate=0,  # shift by up to this many pixels, zero padded
                cutout=0,  # blank a square of this size
                mixup=0.0,  # alpha of Zhang et al., 2018; 0: off
                cutmix=0.0,  # alpha of Yun et al., 2019; 0: off
            ),
            batch_size=128,  # of all devices together
            epochs=1.0,
            examples=0,  # length in examples, instead of epochs
            steps=0,  # length in steps, instead of either
            optim=dict(
                # Any optimizer of optax or optax.contrib, and any of its arguments
                # beside it: momentum, nesterov, b1, eps, ...
                name="sgd",
                lr=0.1,
                weight_decay=0.0,  # L2; of adamw, lion and others like them decoupled
                decay_mask=".*kernel",  # parameters that decay, full match
                # Factors of lr, the first that matches: (("head", 1.0), ("all", 0.1)).
                # Masks are as of transfer.train.
                lr_factors=(),
                clip=0.0,  # largest global norm of the gradient; 0: off
                schedule="constant",
                warmup="0 steps",  # linear, from 0
                milestones=(),  # durations; step: lr times gamma after each
                gamma=0.1,  # factor of step, exponential (per epoch), plateau
                patience="5 epochs",  # plateau
            ),
            transfer=dict(
                init_from="",  # a file of weights, or published ones: resnet50:V1
                train="all",  # head | last:<n> layers | all | parameters, full match
                frozen="eval",  # layers that are not trained: stored statistics, no
                # dropout; train: as those that are
                cache_features=False,  # run the frozen layers once, train the head
            ),
            label_smoothing=0.0,
            eval_flip=False,  # test each image and its mirror image: mean logits
            ema=0.0,  # decay of averaged parameters and statistics; 0: off
            grad_accum=1,  # micro-batches a step
            seed=0,
            precision="fp32",  # bf16: compute; parameters and statistics stay fp32
            parallel="jit",  # pmap: BatchNorm per device
            deterministic=False,  # bit-identical runs on a GPU too
            steps_per_call=0,  # 0: 4 on CPU, else 64; 1 if the host feeds each step
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
    config = _run_config_file(*spec.partition(":")[::2])
    overrides = dict(overrides or {})
    # A new model or optimizer says which other fields there are.
    for section in ("model", "optim"):
        if (name := overrides.pop(f"{section}.name", None)) is not None:
            config[section].name = name
            known = _known_keys(config)
            for field in list(config[section]):
                if f"{section}.{field}" not in known:
                    del config[section][field]
    # A length that is given replaces the one of the file.
    if given := [length for length in LENGTHS if length in overrides]:
        config.update({length: 0 for length in LENGTHS if length not in given})
    known = _known_keys(config)
    for key, text in overrides.items():
        if key not in known:
            raise unknown("config key", key, known)
        section, _, leaf = key.rpartition(".")
        node = config[section] if section else config
        with node.ignore_type():
            node[leaf] = _parse(key, text, known[key])
    check_config(config)
    return config


def _run_config_file(path: str, arg: str) -> ConfigDict:
    if not os.path.isfile(path):  # Path.is_file raises for a directory not readable
        files = [*Path("configs").glob("*.py"), *Path(path or ".").parent.glob("*.py")]
        raise unknown("config file", path, {str(file) for file in files})
    try:
        get_config = runpy.run_path(path)["get_config"]
        takes_argument = bool(inspect.signature(get_config).parameters)
        if arg and not takes_argument:
            raise FlaxcnnError(f"{path} takes no argument; leave out {arg!r}")
        config = get_config(*([arg] if arg else []))
    except FlaxcnnError:
        raise
    except Exception as error:  # the user's file: its line says more than our stack
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__)
                 if f.filename == path]  # fmt: skip
        where = f"{path}:{lines[-1]}" if lines else path
        raise FlaxcnnError(f"{where}: {type(error).__name__}: {error}") from error
    if not isinstance(config, ConfigDict):
        raise FlaxcnnError(f"{path}: get_config returns no ConfigDict; return one")
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
    given = flatten(config)
    for key, value in flatten(default_config()).items():
        if given.get(key) is None:
            raise FlaxcnnError(
                f"config.{key} has no value; begin with flaxcnn.default_config(), "
                f"which has {value!r}"
            )
    known = _known_keys(config)
    for key in given:
        if key not in known:
            raise unknown("config key", key, known)
    for key, choices in CHOICES.items():
        if given[key] not in choices:
            raise unknown(f"value of config.{key}", str(given[key]), choices)
    for key, (low, high) in RANGES.items():
        if not low <= given[key] < (math.inf if high is None else high):
            below = "" if high is None else f" and below {high}"
            raise FlaxcnnError(
                f"config.{key}={given[key]}; it must be at least {low}{below}"
            )
    if config.data.random_crop and config.data.pipeline == "device":
        raise FlaxcnnError(
            "config.data.random_crop makes new images of the files every time; leave "
            "config.data.pipeline at auto"
        )
    if config.data.random_crop and not config.data.image_size:
        raise FlaxcnnError("config.data.random_crop needs config.data.image_size")
    if config.transfer.cache_features:
        _check_cached(config)
    for pair in config.optim.lr_factors:
        match pair:
            case [str(), int() | float() as factor] if 0 <= factor < math.inf:
                continue
        raise FlaxcnnError(
            f"config.optim.lr_factors has {pair!r}; it holds pairs of a mask and a "
            "factor of 0 or more, for example (('head', 1.0), ('all', 0.1))"
        )
    if config.optim.schedule == "plateau" and not 0 < config.optim.gamma < 1:
        raise FlaxcnnError(
            f"config.optim.gamma={config.optim.gamma}; between 0 and 1 for a plateau"
        )
    if config.optim.schedule == "step" and not config.optim.milestones:
        raise FlaxcnnError(
            "config.optim.schedule='step' needs config.optim.milestones, "
            "for example (200, '250 epochs')"
        )


def _check_cached(config: ConfigDict) -> None:
    where = "config.transfer.cache_features"
    if config.transfer.train != "head" or config.transfer.frozen != "eval":
        raise FlaxcnnError(
            f'{where} needs config.transfer.train="head" and frozen="eval": all before '
            "the head has to stay as it is"
        )
    augmentation = ("random_crop", "flip", "translate", "cutout", "mixup", "cutmix")
    given = flatten(config)
    for key in ("eval_flip", *(f"data.{name}" for name in augmentation)):
        if given[key]:
            raise FlaxcnnError(
                f"{where} sees every image once, as it is; leave out config.{key}"
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
    """Converts durations to steps, exactly.

    Args:
      examples: number of training samples, one epoch.
      batch_size: samples a step.
    """

    def __init__(self, examples: int, batch_size: int):
        self.examples, self.batch_size = examples, batch_size

    def steps(self, duration: Duration, key: str = "duration") -> Fraction:
        """Steps of "N steps", "N epochs", "N examples", or of a number of epochs.

        Raises:
          FlaxcnnError: it is none; the message names `key`.
        """
        match = re.fullmatch(
            r"\s*([\d_]*\.?[\d_]*(?:e[+-]?\d{1,2})?)\s*(?:(step|epoch|example)s?)?\s*",
            str(duration),
        )
        try:
            number = Fraction(match[1]) if match else None
        except ValueError:
            number = None
        if match is None or number is None:
            raise FlaxcnnError(
                f"{key}={duration!r} is no duration; write for example "
                '"500 steps", "2 epochs" or "10000 examples"'
            )
        unit = match[2] or "epoch"
        per_unit = {"step": self.batch_size, "epoch": self.examples, "example": 1}
        return number * per_unit[unit] / self.batch_size

    def period(self, duration: Duration, key: str) -> Fraction:
        """As `steps`, of the time between two events: more than 0."""
        steps = self.steps(duration, key)
        if steps <= 0:
            raise FlaxcnnError(f'{key}={duration!r}; write for example "1 epoch"')
        return steps

    def total(self, config: ConfigDict) -> int:
        """Steps of the whole run: of `steps`, else `examples`, else `epochs`."""
        length = next((key for key in LENGTHS if config[key]), "epochs")
        steps = self.steps(f"{config[length]} {length}", f"config.{length}")
        if not steps:
            raise FlaxcnnError("config.epochs=0: nothing to train; set epochs or steps")
        return math.ceil(steps)


def optimizer_function(name: str) -> Any:
    """The function of optax or optax.contrib that makes the optimizer `name`."""
    import optax
    import optax.contrib

    found = {
        key: value
        for module in (optax.contrib, optax)
        for key, value in vars(module).items()
        if key not in NOT_OPTIMIZERS
        and not key.startswith("scale_by_")
        and _is_optimizer(value)
    }
    if name not in found:
        raise unknown("optimizer", name, found)
    return found[name]


def _is_optimizer(value: Any) -> bool:
    """Does it make an optimizer of a learning rate alone?"""
    if not (inspect.isfunction(value) or isinstance(value, functools.partial)):
        return False  # nadam is a partial of adam
    parameters = dict(inspect.signature(value).parameters)
    rate = parameters.pop("learning_rate", None)
    return rate is not None and all(
        p.default is not p.empty or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        for p in parameters.values()
    )


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


def _parse(key: str, text: str, like: Any) -> Any:
    """`text` as a value of the type of `like`."""
    kind = type(like)
    try:
        if kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if kind in (int, float, str):
            return kind(text)
        value = ast.literal_eval(text)
        if kind is not tuple:
            if like is None and not isinstance(value, bool | int | float | str | None):
                raise ValueError(text)
            return value
        if isinstance(value, str):  # not the tuple of its letters
            raise ValueError(text)
        return tuple(value) if isinstance(value, tuple | list) else (value,)
    except (ValueError, KeyError, SyntaxError, TypeError):
        if like is None:
            raise FlaxcnnError(
                f"config.{key}={text!r} is no number, True, False, None or 'text'"
            ) from None
        article = "an" if kind is int else "a"
        example = "(200, '250 epochs')" if kind is tuple else repr(like)
        raise FlaxcnnError(
            f"config.{key}={text!r} is not {article} {kind.__name__}; "
            f"for example {example}"
        ) from None
