"""Overrides, checks and durations."""

import math

import pytest

from flaxcnn.errors import FlaxcnnError
from flaxcnn.train.config import (
    Durations,
    check_config,
    default_config,
    load_config,
    parse_overrides,
)


def test_overrides_take_the_type_of_what_they_replace(debug_config):
    config = debug_config(
        "allcnn_c", batch_size="64", epochs="3", optim__lr="1e-3", resume="false",
        optim__milestones="(1, '20 steps')", model__dropout="0.1", data__dir="/data",
    )  # fmt: skip
    assert config.batch_size == 64
    assert config.epochs == 3.0
    assert config.optim.lr == 1e-3
    assert config.resume is False
    assert config.optim.milestones == (1, "20 steps")
    assert config.model.dropout == 0.1
    assert config.data.dir == "/data"


def test_the_optimizer_decides_which_arguments_there_are(debug_config):
    config = debug_config(optim__name="adamw", optim__b1="0.8")
    assert config.optim.b1 == 0.8
    with pytest.raises(FlaxcnnError, match=r"'optim\.b1'"):
        debug_config(optim__name="sgd", optim__b1="0.8")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("batch_siz", "1", "unknown config key 'batch_siz'; did you mean batch_size"),
        ("optim.learning", "1", "unknown config key 'optim.learning'"),
        (
            "model.droput",
            "1",
            "unknown config key 'model.droput'; did you mean model.d",
        ),
        ("model.name", "resnet5", "unknown model 'resnet5'"),
        ("model.name", "allcn_c", "did you mean allcnn_c"),
        ("optim.name", "sdg", "unknown optimizer 'sdg'; did you mean sgd"),
        ("optim.schedule", "cosin", "did you mean cosine"),
        ("precision", "fp16", "unknown value of config.precision 'fp16'; did you mean"),
        ("parallel", "ddp", "unknown value of config.parallel 'ddp'"),
        ("batch_size", "many", "config.batch_size='many' is not an int"),
        ("batch_size", "1.5", "config.batch_size='1.5' is not an int"),
        ("resume", "maybe", "config.resume='maybe' is not a bool"),
        ("optim.lr", "fast", "config.optim.lr='fast' is not a float"),
        ("batch_size", "0", "config.batch_size=0; it must be at least 1"),
        ("grad_accum", "5", "is not divisible by config.grad_accum=5"),
    ],
)
def test_bad_values(debug_config, key, value, message):
    with pytest.raises(FlaxcnnError) as error:
        debug_config("allcnn_c", **{key: value})
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_key_that_a_config_file_invents():
    config = default_config()
    config.optim.wamup = "5 epochs"
    with pytest.raises(
        FlaxcnnError, match=r"'optim\.wamup'; did you mean optim\.warmup"
    ):
        check_config(config)


def test_no_such_config_file():
    with pytest.raises(
        FlaxcnnError, match=r"allcnn_d\.py'; did you mean .*allcnn_c\.py"
    ):
        load_config("configs/allcnn_d.py")


def test_no_such_argument():
    with pytest.raises(FlaxcnnError, match="there are cifar10, cifar100, digits"):
        load_config("configs/allcnn_c.py:cifar1")


def test_arguments_that_are_no_overrides():
    assert parse_overrides(["--config.optim.lr=a=b"]) == {"optim.lr": "a=b"}
    with pytest.raises(FlaxcnnError, match="unknown argument '--lr=1'"):
        parse_overrides(["--lr=1"])


def test_durations():
    durations = Durations(examples=50_000, batch_size=128)
    assert durations.steps("500 steps") == 500
    assert durations.steps("1 step") == 1
    assert durations.steps(2) == durations.steps("2 epochs") == 2 * 50_000 / 128
    assert durations.steps("12_800 examples") == 100
    for wrong in ("fast", "3 weeks", "-1 epochs", ""):
        with pytest.raises(FlaxcnnError, match="is no duration"):
            durations.steps(wrong)


def test_total_steps():
    durations = Durations(examples=50_000, batch_size=128)
    config = default_config()
    config.epochs = 1
    assert durations.total(config) == math.ceil(390.625)
    config.examples = 12_800
    assert durations.total(config) == 100
    config.steps = 7
    assert durations.total(config) == 7
    config.steps = config.examples = 0
    config.epochs = 0
    with pytest.raises(FlaxcnnError, match="nothing to train"):
        durations.total(config)
