"""Whole runs that start from weights, with frozen layers or cached features."""

import json
import re
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import flaxcnn
from flaxcnn.errors import FlaxcnnError
from flaxcnn.train import transfer
from flaxcnn.train.config import load_config
from flaxcnn.train.loop import fit
from flaxcnn.train.transfer import make_plan
from flaxcnn.transfer import CachedTrunk
from flaxcnn.weights.catalog import CATALOG
from flaxcnn.weights.files import load_model, model_facts, save_model
from tests.paths import REAL_DATA, ROOT

LONG = pytest.mark.long
HEAD = {"params/fc/bias", "params/fc/map_kernel"}  # of resblocks_resized
SMALL = {
    "data__image_size": 8, "batch_size": 16, "steps": 8, "eval_every": "4 steps",
    "log_every": "4 steps", "checkpoint_every": "4 steps",
}  # fmt: skip


def write_images(root, classes, seed=0):
    """A folder of 8x8 PNGs: 24 a class to train, 10 to test."""
    random = np.random.default_rng(seed)
    for split, count in {"train": 24, "test": 10}.items():
        for label in range(classes):
            directory = root / split / f"class{label}"
            directory.mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 120, (8, 8, 3)) + 40 * label
                image = Image.fromarray(pixels.astype(np.uint8))
                image.save(directory / f"{i}.png")
    return f"folder:{root}"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Data sets by their number of classes."""
    root = tmp_path_factory.mktemp("folders")
    return {n: write_images(root / str(n), n, seed=n) for n in (3, 4)}


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A file of resblocks_resized for four classes, as a run leaves it."""
    variables = drawn(seed=9, classes=4)
    for path, x in variables.items():
        if path.startswith("batch_stats/"):
            x += np.random.default_rng(0).uniform(0, 0.5, x.shape)
    file = tmp_path_factory.mktemp("start") / "model.safetensors"
    return write_start(file, variables, [f"class{i}" for i in range(4)])


def write_start(file, variables, classes):
    facts = model_facts(
        "resblocks_resized", {"num_classes": 4}, classes, (8, 8, 3), 8, "unit"
    )
    save_model(file, unflatten_dict(variables, sep="/"), facts, {})
    return file


@pytest.fixture
def run(debug_config, folders, start, tmp_path):
    """A function that trains on three classes: the arrays, by path.

    resblocks_resized starts from `start`, another model from its seed.
    """

    def make(workdir="run", model="resblocks_resized", **overrides):
        options = {**SMALL, "data__name": folders[3], "data__preprocess": "unit"}
        if model == "resblocks_resized":
            options["transfer__init_from"] = start
        fit(debug_config(model, **{**options, **overrides}), tmp_path / workdir)
        return load_file(tmp_path / workdir / "model.safetensors")

    return make


def log_of(workdir):
    return (workdir / "log.txt").read_text()


def rows_of(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [(r["step"], r["split"], r["loss"], r["accuracy"])
            for r in map(json.loads, lines)]  # fmt: skip


def moved(before, after):
    """Paths of the arrays that are not bit-identical."""
    assert before.keys() == after.keys()
    return {
        path
        for path, x in before.items()
        if x.shape != after[path].shape or x.tobytes() != after[path].tobytes()
    }


def drawn(seed, classes=3):
    """The variables of resblocks_resized that follow from the seed."""
    model = flaxcnn.create_model("resblocks_resized", num_classes=classes)
    shape = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    variables = model.lazy_init(jax.random.key(seed), shape, train=False)
    return {p: np.array(x) for p, x in flatten_dict(variables, sep="/").items()}


def assert_close(a, b, **tolerance):
    assert a.keys() == b.keys()
    for path, x in a.items():
        np.testing.assert_allclose(x, b[path], err_msg=path, **tolerance)


# What is loaded.


def test_the_report_says_what_was_loaded_and_what_is_new(run, start, tmp_path):
    after = run(transfer__train="head")
    before = load_file(start)
    kept = {path: x for path, x in before.items() if path not in HEAD}
    numbers = sum(x.size for x in kept.values())
    log = log_of(tmp_path / "run")
    assert f"loaded {len(kept)} arrays, {numbers:,} numbers, from " in log
    assert f"{start}; new: fc/bias, fc/map_kernel\n" in log
    head, others = (
        sum(x.size for path, x in after.items()
            if path.startswith("params/") and (path in HEAD) == is_head)
        for is_head in (True, False)
    )  # fmt: skip
    assert f"training {head:,} of {head + others:,} parameters" in log


def test_a_run_starts_at_the_loaded_numbers_and_a_fresh_head(run, start):
    """A rate of 0 shows the start."""
    after = run(optim__lr=0, transfer__train="head", seed=3)
    assert moved(load_file(start), after) == HEAD
    fresh = drawn(seed=3)
    assert not {path for path in HEAD if (after[path] != fresh[path]).any()}


@LONG
def test_the_head_is_loaded_for_classes_of_the_same_names(
    run, start, folders, tmp_path
):
    options = {"optim__lr": 0, "transfer__train": "head", "data__name": folders[4]}
    before = load_file(start)
    assert moved(before, run(**options)) == set()
    assert "new:" not in log_of(tmp_path / "run")
    file = write_start(tmp_path / "others.safetensors", before, list("abcd"))
    assert moved(before, run("others", transfer__init_from=file, **options)) == HEAD
    assert "; new: fc/bias, fc/map_kernel" in log_of(tmp_path / "others")


# What is trained.

EVERYTHING = {
    "ema": 0.5, "optim__weight_decay": 0.1, "optim__decay_mask": ".*",
    "optim__momentum": 0.9, "optim__clip": 1.0, "grad_accum": 2, "precision": "bf16",
    "optim__lr": 0.1,
}  # fmt: skip
LAST3 = {"fc/", "block2/conv_shortcut/", "block2/bn_shortcut/", "block2/conv2/",
         "block2/bn2/"}  # fmt: skip


@pytest.mark.parametrize(
    ("words", "modules", "options"),
    [
        pytest.param("head", {"fc/"}, EVERYTHING, marks=LONG),
        ("last:3", LAST3, EVERYTHING),
        pytest.param("last:3", LAST3, {"optim__name": "adamw"}, marks=LONG),
        pytest.param("(block1/bn1|fc)/.*", {"block1/bn1/", "fc/"}, {}, marks=LONG),
        pytest.param("all", {""}, EVERYTHING, marks=LONG),
    ],
)
def test_frozen_parameters_and_statistics_stay_bit_by_bit(
    run, start, folders, words, modules, options
):
    """And all the others move. The head is that of the file, of the same classes."""
    before = load_file(start)
    after = run(transfer__train=words, data__name=folders[4], **options)
    expected = {
        path
        for path in before
        if any(path.partition("/")[2].startswith(module) for module in modules)
    }
    assert moved(before, after) == expected


def test_with_frozen_train_the_statistics_move_but_no_parameter(run, start, folders):
    before = load_file(start)
    options = {"transfer__train": "head", "transfer__frozen": "train"}
    after = run(data__name=folders[4], ema=0.5, **options)
    statistics = {path for path in before if path.startswith("batch_stats/")}
    assert len(statistics) == 12
    assert moved(before, after) == HEAD | statistics


def test_without_a_file_the_frozen_layers_stay_as_they_were_drawn(run):
    after = run(transfer__init_from="", transfer__train="head", seed=3)
    assert moved(drawn(seed=3), after) == HEAD


@LONG
def test_a_factor_of_zero_is_a_frozen_layer_in_training_mode(run):
    factors = "(('head', 1.0), ('all', 0.0))"
    zero = run("zero", transfer__train="all", optim__lr_factors=factors)
    frozen = run("frozen", transfer__train="head", transfer__frozen="train")
    assert_close(zero, frozen, rtol=0, atol=1e-6)


@LONG
def test_factors_scale_the_first_step(run, start, folders):
    one_step = {"steps": 1, "optim__lr": 0.5, "data__name": folders[4]}
    factors = "(('last:2', 1.0), ('block1.*', 0.5), ('all', 0.25))"
    whole = run("whole", **one_step)
    part = run("part", **one_step, optim__lr_factors=factors)
    first = {"params/block1/": 0.5, "params/fc/": 1, "params/block2/conv_shortcut/": 1,
             "params/block2/bn_shortcut/": 1, "params/block2/": 0.25}  # fmt: skip
    for path, before in load_file(start).items():
        if not path.startswith("params/"):
            continue
        factor = next(f for prefix, f in first.items() if path.startswith(prefix))
        step = whole[path] - before
        if path.endswith(("kernel", "scale")):
            assert np.abs(step).max() > 1e-4, path
        np.testing.assert_allclose(
            part[path] - before, factor * step, rtol=1e-4, atol=5e-7, err_msg=path
        )


# Cached features.

HEADS = {"transfer__train": "head", "optim__lr": 0.1, "steps": 20}


@pytest.mark.parametrize(
    "options",
    [
        {"model__dropout": 0.3, "ema": 0.9},
        pytest.param({"data__pipeline": "host"}, marks=LONG),
        pytest.param({"precision": "bf16"}, marks=LONG),
        pytest.param({"grad_accum": 2, "steps_per_call": 3}, marks=LONG),
    ],
    ids=["dropout", "host", "bf16", "accumulated"],
)
def test_cached_features_change_nothing(run, tmp_path, options):
    """Five epochs of dropout before the head: the same parameters, the same rows."""
    options = {**HEADS, "model": "tiny_bn", "eval_every": "7 steps", **options}
    usual = run("usual", **options)
    cached = run("cached", transfer__cache_features=True, **options)
    assert_close(usual, cached, rtol=0, atol=1e-6)
    rows = rows_of(tmp_path / "usual")
    assert rows_of(tmp_path / "cached") == [
        (*row[:2], *map(pytest.approx, row[2:])) for row in rows
    ]
    assert [row[0] for row in rows if row[1] == "test"] == [7, 14, 20]
    assert re.search(
        r"features \[4, 4, 8\] of 102 images in", log_of(tmp_path / "cached")
    )


@LONG
def test_cached_features_leave_the_trunk_as_it_is(run, start, folders):
    options = {"transfer__train": "head", "transfer__cache_features": True}
    after = run(data__name=folders[4], ema=0.9, **options)
    assert moved(load_file(start), after) == HEAD


def test_features_too_large_to_keep(run, tmp_path, monkeypatch):
    """72 training images of 4 x 4 x 8 float32: one byte more than there is."""
    size = 72 * 4 * 4 * 8 * 4
    options = {**HEADS, "model": "tiny_bn", "transfer__cache_features": True}
    monkeypatch.setattr(transfer, "DEVICE_LIMIT", size)
    run("fits", **options)
    monkeypatch.setattr(transfer, "DEVICE_LIMIT", size - 1)
    with pytest.raises(
        FlaxcnnError, match=r"features of 72 images, .*, or config\.data"
    ):
        run("large", **options)
    assert not (tmp_path / "large").exists()


# Resuming.


@pytest.mark.parametrize(
    "options",
    [
        {"transfer__train": "last:2", "optim__name": "adam", "ema": 0.9},
        pytest.param(
            {"transfer__train": "head", "transfer__cache_features": True}, marks=LONG
        ),
    ],
    ids=["frozen", "cached"],
)
def test_a_run_continues_from_an_older_checkpoint(run, tmp_path, options):
    options = {**options, "model": "tiny_bn", "model__dropout": 0.3}
    whole = run(**options)
    rows = rows_of(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "8")
    (tmp_path / "run" / "model.safetensors").unlink()
    again = run(**options)
    assert "continuing from step 4" in log_of(tmp_path / "run")
    assert moved(whole, again) == set()
    assert rows_of(tmp_path / "run") == rows


@pytest.mark.long
def test_features_are_of_the_checkpoint_though_the_file_changed(run, start, tmp_path):
    file = tmp_path / "start.safetensors"
    shutil.copy(start, file)
    options = {"transfer__init_from": file, "transfer__train": "head",
               "transfer__cache_features": True}  # fmt: skip
    whole = run(**options)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "8")
    (tmp_path / "run" / "model.safetensors").unlink()
    variables, facts, arrays = load_model(file)
    save_model(file, jax.tree.map(lambda x: 1.5 * x, variables), facts, arrays)
    assert moved(whole, run(**options)) == set()


# The preprocessing.


@pytest.mark.long
def test_a_fitted_preprocessing_comes_with_the_weights(run, folders, tmp_path):
    """If it is of the same kind; else a line in the log says that it is another."""
    options = {"transfer__train": "head", "model": "tiny_bn", "steps": 1}
    fitted = run(
        "fitted", data__preprocess="standardize",
        data__name=folders[4], **options,
    )  # fmt: skip
    file = tmp_path / "fitted" / "model.safetensors"
    own = run("own", data__preprocess="standardize", **options)
    again = run(
        "again", transfer__init_from=file, data__preprocess="standardize", **options
    )
    for path in ("preprocess/mean", "preprocess/std"):
        np.testing.assert_array_equal(again[path], fitted[path])
        assert (own[path] != fitted[path]).any()
    assert "the weights were trained with" not in log_of(tmp_path / "again")

    run("unit", transfer__init_from=file, **options)
    line = "trained with config.data.preprocess='standardize', not 'unit'"
    assert line in log_of(tmp_path / "unit")


# Devices.


@LONG
@pytest.mark.parametrize(
    "options",
    [("train=head",), ("train=head", "cache_features=true"), ("train=last:2",)],
    ids=["head", "cached", "last:2"],
)
def test_two_devices_give_the_same_as_one(train_py, folders, start, tmp_path, options):
    """By pmap, where a trained BatchNorm would see its device's part, the head only."""
    arguments = [f"--config.{key.replace('__', '.')}={x}" for key, x in SMALL.items()]
    arguments += [f"--config.transfer.{option}" for option in options]
    runs = {"one": (1, "jit"), "jit": (2, "jit"), "pmap": (2, "pmap")}
    if options == ("train=last:2",):
        del runs["pmap"]
    for name, (devices, parallel) in runs.items():
        done = train_py(
            "--config=configs/debug.py:resblocks_resized", *arguments,
            f"--config.data.name={folders[3]}", "--config.data.preprocess=unit",
            f"--config.transfer.init_from={start}",
            f"--config.parallel={parallel}", f"--workdir={tmp_path / name}",
            devices=devices,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert f"on {devices} cpu" in done.stdout
    one, *others = (load_file(tmp_path / name / "model.safetensors") for name in runs)
    before = load_file(start)
    frozen = {path for path in before if not re.search("fc|_shortcut", path)}
    for other in others:
        assert_close(one, other, rtol=0, atol=1e-5)
        assert not moved(before, other) & frozen
    for name in list(runs)[1:]:
        expected = [(*row[:2], pytest.approx(row[2], rel=1e-4), row[3])
                    for row in rows_of(tmp_path / "one")]  # fmt: skip
        assert rows_of(tmp_path / name) == expected


# What cannot work.

CACHED = {"transfer__train": "head", "transfer__cache_features": True}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"transfer__cache_features": True}, 'needs config.transfer.train="head"'),
        ({**CACHED, "transfer__frozen": "train"}, 'and frozen="eval"'),
        ({**CACHED, "data__flip": True}, "leave out config.data.flip"),
        ({**CACHED, "data__mixup": 0.2}, "leave out config.data.mixup"),
        ({**CACHED, "eval_flip": True}, "leave out config.eval_flip"),
        ({"transfer__frozen": "off"}, "unknown value of config.transfer.frozen 'off'"),
        ({"transfer__train": "last:99"}, "'last:99': the model has 7 layers"),
        ({"transfer__train": "nothing"}, "config.transfer.train='nothing' matches no"),
        ({"transfer__train": "last:0"}, "config.transfer.train='last:0' matches no"),
        ({"transfer__train": "(fc"}, "config.transfer.train='(fc' is no regular"),
        (
            {"transfer__init_from": "/nowhere/model.safetensors"},
            "no file /nowhere/model.safetensors",
        ),
        (
            {"transfer__init_from": "resnet5"},
            "unknown model with published weights 'resnet5'; did you mean resnet50",
        ),
        ({"optim__lr_factors": "('head', 1.0)"}, "config.optim.lr_factors has 'head'"),
        ({"optim__lr_factors": "(('head', 'all'),)"}, "has ('head', 'all'); it holds"),
        ({"optim__lr_factors": "(('head', -1.0),)"}, "has ('head', -1.0); it holds"),
        (
            {"transfer__train": "head", "optim__lr_factors": "(('block1.*', 0.1),)"},
            "config.optim.lr_factors: 'block1.*' matches no parameter; there are fc/",
        ),
        ({"optim__lr_factors": "(('last:8', 0.1),)"}, "'last:8': the model has 7"),
        ({"optim__lr_factors": "(('(', 0.1),)"}, "lr_factors: '(' is no regular"),
        (
            {"model": "resnet20_cifar", "model__scan_blocks": True, "model__n": 1,
             "transfer__train": "head"},
            "set config.model.scan_blocks=false",
        ),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_leaves_nothing(run, tmp_path, options, message):
    with pytest.raises(FlaxcnnError) as error:
        run(**options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def with_nan(file, path):
    """A copy at `path`, with the metadata, of which one number is not finite."""
    arrays = load_file(file)
    arrays["params/block1/conv1/kernel"][0, 0, 0, 0] = np.nan
    with safe_open(file, "numpy") as opened:
        save_file(arrays, path, opened.metadata())
    return path


@pytest.mark.parametrize("kind", ["another model", "not finite", "no weights"])
def test_a_file_that_does_not_fit(run, start, tmp_path, kind):
    model = "resblocks_resized"
    if kind == "another model":
        model, file = "tiny_bn", start
        message = "has weights of resblocks_resized, not of tiny_bn; load resblocks"
    elif kind == "not finite":
        file = with_nan(start, tmp_path / "nan.safetensors")
        message = "block1.conv1.weight has values that are not finite"
    else:
        file = tmp_path / "half.safetensors"
        file.write_bytes(start.read_bytes()[:5000])
        message = "is damaged or no file of weights"
    with pytest.raises(FlaxcnnError) as error:
        run(model=model, transfer__init_from=file, transfer__train="head")
    assert message in str(error.value)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


# configs/transfer.py


def transfer_config(model, **overrides):
    return load_config(f"{ROOT}/configs/transfer.py:{model}", overrides)


def test_the_config_of_every_network_with_weights():
    """Its input is what the weights are published for."""
    names = {weights.model for weights in CATALOG}
    assert len(names) >= 40
    for name in names:
        config = transfer_config(name)
        weights = flaxcnn.model_info(name).weights[0]
        assert (config.model.name, config.transfer.init_from) == (name, name)
        assert config.data.preprocess == weights.preprocess
        assert (config.data.image_size, config.data.resize) == (
            weights.crop, weights.resize
        )  # fmt: skip
    assert transfer_config("inception_v3").data.image_size == 299
    assert transfer_config("inception_v3").data.preprocess == "inception"


def test_the_config_of_a_network_without_weights():
    with pytest.raises(FlaxcnnError, match="of nin no weights are published"):
        transfer_config("nin")
    with pytest.raises(FlaxcnnError, match="unknown model 'resnet5'"):
        transfer_config("resnet5")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({}, HEAD),
        pytest.param(
            {"transfer.train": "all", "transfer.cache_features": "false",
             "data.flip": "true"},
            None, marks=LONG,
        ),
    ],
    ids=["head", "all"],
)  # fmt: skip
def test_the_config_trains_from_a_file(start, folders, tmp_path, overrides, expected):
    """As its docstring says, but for the network, which is small here."""
    small = {"model.name": "resblocks_resized", "data.name": folders[4], "steps": "4",
             "data.image_size": "8", "data.resize": "8", "data.preprocess": "unit",
             "transfer.init_from": str(start)}  # fmt: skip
    fit(transfer_config("resnet18", **small, **overrides), tmp_path)
    before = load_file(start)
    after = load_file(tmp_path / "model.safetensors")
    assert moved(before, after) == (expected or before.keys())


@LONG
@pytest.mark.skipif(
    not (REAL_DATA / "hymenoptera").is_dir(), reason="needs ../shared/data/hymenoptera"
)
def test_the_head_alone_tells_ants_from_bees(train_py, tmp_path):
    """In under a minute, with everything; the trunk stays the published one."""
    file = REAL_DATA / "weights" / "squeezenet1_1_caffe.pth"
    started = time.perf_counter()
    done = train_py(
        f"--config={ROOT}/configs/transfer.py:squeezenet1_1",
        f"--config.data.name=folder:{REAL_DATA / 'hymenoptera'}",
        f"--config.transfer.init_from={file}", "--config.data.preprocess=caffe",
        "--config.data.image_size=227", f"--workdir={tmp_path}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert time.perf_counter() - started < 60
    rows = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(rows[-1])["accuracy"] > 0.9  # 91.5 % is the mean of three seeds
    _, before = flaxcnn.load_pretrained("squeezenet1_1", file)
    after = flatten_dict(load_model(tmp_path / "model.safetensors")[0]["params"])
    for path, x in flatten_dict(before["params"]).items():
        if path[0] != "classifier.1":
            np.testing.assert_array_equal(after[path], x)


# configs/vgg16_transfer.py


def vgg16_config(variant="", **overrides):
    return load_config(f"{ROOT}/configs/vgg16_transfer.py{variant}", overrides)


def test_vgg16_as_the_lecture_meant_it():
    """Images at 224 pixels, ImageNet's normalisation, only the new head trained."""
    config = vgg16_config()
    data = config.data
    assert (data.image_size, data.preprocess) == (224, "imagenet")
    assert (config.epochs, config.batch_size) == (10, 128)
    assert config.transfer.init_from == "vgg16:V1"
    model = flaxcnn.create_model("vgg16", num_classes=10)
    plan = make_plan(config, model, (224, 224, 3))
    assert isinstance(plan.network, CachedTrunk)
    assert plan.report == "training 40,970 of 134,301,514 parameters"


def test_vgg16_as_the_notebook_ran():
    """Its printed numbers of parameters; dropout in the frozen layers too."""
    config = vgg16_config(":notebook")
    data = config.data
    assert (data.image_size, data.preprocess) == (0, "standardize")  # CIFAR's 32
    assert (config.epochs, config.batch_size) == (50, 256)
    model = flaxcnn.create_model("vgg16", num_classes=10)
    plan = make_plan(config, model, (32, 32, 3))
    assert plan.network is model
    assert plan.report == "training 40,970 of 134,301,514 parameters"


@pytest.mark.parametrize("variant", ["", pytest.param(":notebook", marks=LONG)])
def test_vgg16s_config_trains_from_a_file(start, folders, tmp_path, variant):
    """But for the network, which is small here."""
    small = {"model.name": "resblocks_resized", "data.name": folders[4], "steps": "4",
             "data.image_size": "8", "data.resize": "8",
             "transfer.init_from": str(start)}  # fmt: skip
    fit(vgg16_config(variant, **small), tmp_path)
    before = load_file(start)
    after = load_file(tmp_path / "model.safetensors")
    for key in [key for key in after if key.startswith("preprocess/")]:
        del after[key]
    statistics = {path for path in before if path.startswith("batch_stats/")}
    assert moved(before, after) == HEAD | (statistics if variant else set())


def test_vgg16s_config_has_two_variants():
    with pytest.raises(FlaxcnnError, match=r"there are intended .* and notebook"):
        vgg16_config(":notebok")
