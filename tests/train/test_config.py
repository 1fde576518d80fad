"""Overrides, checks and durations."""

import math
import os
from fractions import Fraction

import pytest

from flaxcnn.errors import FlaxcnnError
from flaxcnn.train.config import (
    Durations,
    check_config,
    default_config,
    load_config,
    parse_overrides,
)
from flaxcnn.train.workdir import default_workdir
from tests.paths import ROOT


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
    assert "momentum" not in config.optim  # debug.py sets it, for sgd
    with pytest.raises(FlaxcnnError, match=r"'optim\.b1'"):
        debug_config(optim__name="sgd", optim__b1="0.8")


def test_another_model_drops_the_fields_that_it_lacks():
    overrides = {"model.name": "nin", "model.dropout": "0.3"}
    config = load_config(f"{ROOT}/configs/allcnn_c.py:digits", overrides)
    assert config.model.to_dict() == {"name": "nin", "dropout": 0.3}


def test_a_given_length_replaces_that_of_the_file(debug_config):
    durations = Durations(examples=128, batch_size=32)
    assert durations.total(debug_config()) == 10
    assert durations.total(debug_config(epochs="2")) == 8
    assert durations.total(debug_config(examples="64")) == 2
    assert durations.total(debug_config(epochs="1e-1")) == 1


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
        ("ema", "1.5", "config.ema=1.5; it must be at least 0 and below 1"),
        ("optim.lr", "-1", "config.optim.lr=-1.0; it must be at least 0"),
        ("optim.lr", "nan", "config.optim.lr=nan; it must be"),
        ("data.translate", "-1", "config.data.translate=-1"),
        ("seed", "-1", "config.seed=-1"),
        ("steps", "-3", "config.steps=-3"),
        ("optim.name", "lbfgs", "unknown optimizer 'lbfgs'"),
        ("optim.name", "dpsgd", "unknown optimizer 'dpsgd'"),
        ("optim.milestones", "'5 epochs'", "is not a tuple; for example (200, '250"),
        ("optim.momentum", "high", "config.optim.momentum='high' is no number"),
        ("optim.momentum", "{[]:1}", "config.optim.momentum='{[]:1}' is no number"),
        ("optim.momentum", "0,9", "config.optim.momentum='0,9' is no number"),
        ("optim.name", "", "unknown optimizer ''; known: "),
        ("optim.name", "schedule_free_sgd", "unknown optimizer 'schedule_free_sgd'"),
    ],
)
def test_bad_values(debug_config, key, value, message):
    with pytest.raises(FlaxcnnError) as error:
        debug_config("allcnn_c", **{key: value})
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"data__image_size": 0},
            "config.data.random_crop needs config.data.image_size",
        ),
        ({"data__image_size": 8, "data__pipeline": "device"}, "data.pipeline at auto"),
        ({"data__image_size": 8, "data__random_crop": 1}, "at least 0 and below 1"),
    ],
)
def test_random_crops_that_cannot_be(debug_config, overrides, message):
    with pytest.raises(FlaxcnnError, match=message):
        debug_config("tiny_bn", **{"data__random_crop": 0.1, **overrides})


def test_a_key_that_a_config_file_invents():
    config = default_config()
    config.optim.wamup = "5 epochs"
    with pytest.raises(
        FlaxcnnError, match=r"'optim\.wamup'; did you mean optim\.warmup"
    ):
        check_config(config)


@pytest.mark.parametrize("key", ["optim.clip", "epochs"])
def test_a_key_that_a_config_file_loses(key):
    config = default_config()
    section, _, leaf = f".{key}".rpartition(".")
    node = config[section[1:]] if section[1:] else config
    with node.ignore_type():
        node[leaf] = None
    with pytest.raises(FlaxcnnError, match=rf"config\.{key} has no value; begin with"):
        check_config(config)
    del node[leaf]
    with pytest.raises(FlaxcnnError, match=rf"config\.{key} has no value; begin with"):
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


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("config.batch_size = '64'", "own.py:4: TypeError"),
        ("config.optim.lr = 1 / 0", "own.py:4: ZeroDivisionError"),
        ("config = None", "returns no ConfigDict"),
        ("def", "SyntaxError"),
    ],
)
def test_a_mistake_in_a_config_file_names_the_line(tmp_path, body, message):
    path = tmp_path / "own.py"
    path.write_text(
        "from flaxcnn import default_config\ndef get_config():\n"
        f"    config = default_config()\n    {body}\n    return config\n"
    )
    with pytest.raises(FlaxcnnError) as error:
        load_config(str(path))
    assert message in str(error.value)


def test_an_argument_that_the_file_does_not_take(tmp_path):
    path = tmp_path / "own.py"
    path.write_text("def get_config(): pass")
    with pytest.raises(FlaxcnnError, match=r"own\.py takes no argument"):
        load_config(f"{path}:x")


def test_durations_are_exact():
    durations = Durations(examples=50_000, batch_size=128)
    assert durations.steps("500 steps") == 500
    assert durations.steps("1 step") == 1
    assert durations.steps(2) == durations.steps("2 epochs") == Fraction(100_000, 128)
    assert durations.steps("12_800 examples") == 100
    assert Durations(100, 1).steps("0.29 epochs") == 29
    assert durations.steps("1e-2 epochs") == Fraction(500, 128)
    for wrong in ("fast", "3 weeks", "-1 epochs", "", ".", "1.2.3", "e5"):
        with pytest.raises(FlaxcnnError, match=r"config\.x=.* is no duration"):
            durations.steps(wrong, "config.x")
    with pytest.raises(FlaxcnnError, match=r"config\.x='0 steps'; write"):
        durations.period("0 steps", "config.x")


def test_every_command_has_its_own_workdir():
    names = [
        default_workdir("configs/a.py", {}),
        default_workdir("configs/a.py:b", {}),
        default_workdir("configs/a.py", {"model.name": "nin"}),
        default_workdir("configs/a.py", {"data.name": "folder:/x y"}),
    ]
    assert len(set(names)) == 4
    assert {name.parent.name for name in names} == {"runs"}
    assert default_workdir("configs/a.py", {"data.dir": "/d"}) == names[0]
    long = [default_workdir("configs/a.py", {"data.name": "é" * 300 + x}) for x in "ab"]
    assert long[0] != long[1]
    assert all(len(os.fsencode(path.name)) <= 200 for path in long)


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
