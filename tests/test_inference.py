"""Classifiers: what they say of images, and where their facts come from."""

import dataclasses

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import accuracy_score, log_loss, top_k_accuracy_score

import flaxcnn
from flaxcnn.data import preprocess
from flaxcnn.data.images import read_image
from flaxcnn.data.preprocess import Preprocess
from flaxcnn.data.sources import as_arrays, load_source
from flaxcnn.errors import FlaxcnnError
from flaxcnn.inference import Classifier, load_classifier
from flaxcnn.structure import variable_shapes
from flaxcnn.train.loop import fit
from flaxcnn.weights.catalog import imagenet_classes
from flaxcnn.weights.files import load_model, model_facts, save_model
from flaxcnn.weights.torch import as_state_dict

LETTERS = tuple("abcdefghij")


def random_variables(name, image_shape, seed=0, **fields):
    """Signals keep their size, variances are positive."""
    random = np.random.default_rng(seed)

    def draw(path, leaf):
        if path[-1].key == "var":
            return random.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        fan_in = max(1, np.prod(leaf.shape[:-1]))
        return random.normal(0, fan_in**-0.5, leaf.shape).astype(np.float32)

    shapes = variable_shapes(flaxcnn.create_model(name, **fields), image_shape)
    return jax.tree_util.tree_map_with_path(draw, shapes)


def tiny(image_shape=(8, 8, 1), kind="unit", arrays=None, seed=0):
    return Classifier(
        name="tiny_bn",
        model=flaxcnn.create_model("tiny_bn", num_classes=10),
        variables=random_variables("tiny_bn", image_shape, seed),
        classes=LETTERS,
        image_shape=image_shape,
        resize=9,
        preprocess=Preprocess(kind, arrays or {}),
    )


def random_pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def softmax(logits):
    logits = np.asarray(logits, np.float64)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def refusal(call, *args, **kwargs):
    """The message of the error: one line."""
    with pytest.raises(FlaxcnnError) as error:
        call(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


# Predictions.


@pytest.mark.parametrize("top", [1, 3, 5, 10, 99])
def test_predictions_are_the_largest_of_a_softmax(top):
    net, pixels = tiny(), random_pixels(6, 8, 8, 1)
    expected = softmax(net.logits(pixels))
    assert expected.max() > 0.11
    predictions = net.predict(pixels, top)
    assert len(predictions) == 6
    for row, prediction in zip(expected, predictions, strict=True):
        names, values = zip(*prediction, strict=True)
        ranked = sorted(range(10), key=lambda k: -row[k])[:top]
        assert list(names) == [LETTERS[k] for k in ranked]
        np.testing.assert_allclose(values, row[ranked], rtol=1e-5)


def test_of_equal_classes_the_first_come_first():
    net = tiny()
    head = net.variables["params"]["fc"]
    head["kernel"] = np.zeros_like(head["kernel"])
    head["bias"] = np.float32([0, 3, 1, 3, 0, 0, 1, 3, 0, 0])
    for prediction in net.predict(random_pixels(2, 8, 8, 1), 6):
        assert "".join(name for name, _ in prediction) == "bdhcga"
        values = [value for _, value in prediction]
        assert values[0] == values[1] == values[2] > values[3] == values[4] > values[5]


def test_large_logits_give_probabilities():
    net = tiny()
    net.variables["params"]["fc"]["bias"][4] = 1e4
    ((name, value), *others), *_ = net.predict(random_pixels(1, 8, 8, 1))
    assert (name, value) == ("e", 1.0)
    assert all(value == 0 for _, value in others)


def test_logits_are_of_the_preprocessed_image():
    random = np.random.default_rng(0)
    pixels = random_pixels(3, 8, 8, 3)
    size = 8 * 8 * 3
    fitted = {
        "standardize": {
            "mean": np.float32([0.4, 0.5, 0.6]), "std": np.float32([0.1, 0.2, 0.3]),
        },
        "gcn_zca": {
            "mean": random.normal(size=size).astype(np.float32),
            "matrix": random.normal(0, 0.1, (size, size)).astype(np.float32),
        },
        "imagenet": preprocess.fit("imagenet", pixels).arrays,
        "caffe": preprocess.fit("caffe", pixels).arrays,
    }  # fmt: skip
    x = pixels.astype(np.float64)
    flat = x.reshape(3, -1) - x.reshape(3, -1).mean(axis=1, keepdims=True)
    flat *= 55 / np.linalg.norm(flat, axis=1, keepdims=True)
    mean, std = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
    zca = fitted["gcn_zca"]
    expected = {
        "standardize": (x / 255 - [0.4, 0.5, 0.6]) / [0.1, 0.2, 0.3],
        "gcn_zca": ((flat - zca["mean"]) @ zca["matrix"]).reshape(x.shape),
        "imagenet": (x / 255 - mean) / std,
        "caffe": x[..., ::-1] - [103.939, 116.779, 123.68],
    }
    for kind, arrays in fitted.items():
        net = tiny((8, 8, 3), kind, arrays)
        logits = net.model.apply(
            net.variables, jnp.asarray(expected[kind], jnp.float32), train=False
        )
        np.testing.assert_allclose(net.logits(pixels), logits, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "shape", "kind"),
    [
        ("resnet20_cifar", (32, 32, 3), "imagenet"),
        ("allconv_mnist", (28, 28, 1), "unit"),
    ],
)
def test_an_exported_program_gives_the_logits(name, shape, kind):
    """In batches in which convolutions are Winograd's, too."""
    net = Classifier(
        name, flaxcnn.create_model(name), random_variables(name, shape), LETTERS,
        shape, shape[0], preprocess.fit(kind, np.zeros((1, 1, 1, 3), np.uint8)),
    )  # fmt: skip
    images = random_pixels(32, *shape)
    exported = jax.export.deserialize(net.export(32))
    assert set(exported.platforms) == {"cpu", "cuda", "tpu"}
    found = exported.call(images)
    np.testing.assert_allclose(found, net.logits(images), rtol=1e-3, atol=1e-4)
    with pytest.raises(FlaxcnnError, match="batch_size=0"):
        net.export(0)


def test_export_says_what_it_lacks(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FlaxcnnError, match="pip install flatbuffers"):
        tiny().export()


def test_files_are_read_as_the_network_takes_them(tmp_path):
    path = tmp_path / "wide.png"
    Image.fromarray(random_pixels(20, 40, 3)).save(path)
    for image_shape in ((8, 8, 1), (8, 8, 3)):
        image = tiny(image_shape).read(path)
        assert image.shape == image_shape
        expected = read_image(path, 8, 9, image_shape[2])
        np.testing.assert_array_equal(image, expected)


# Evaluations.


@pytest.mark.parametrize(
    ("batch_size", "flip"), [(50, True), (128, False), (359, False), (1000, True)]
)
def test_evaluation_on_the_digits(batch_size, flip):
    """As scikit-learn computes it, in batches that do not divide 359."""
    source = load_source("digits", "test")
    images, labels = as_arrays(source)
    net = tiny()
    net.variables["params"]["fc"]["kernel"] *= 5
    result = net.evaluate(source, batch_size, flip)
    logits = net.logits(images)
    if flip:
        logits = np.mean([logits, net.logits(np.flip(images, axis=2))], axis=0)
    probabilities = softmax(logits)
    every = np.arange(10)
    expected = {
        "loss": log_loss(labels, probabilities, labels=every),
        "accuracy": accuracy_score(labels, probabilities.argmax(axis=1)),
        "top5": top_k_accuracy_score(labels, probabilities, k=5, labels=every),
        "count": 359,
    }
    assert result.keys() == expected.keys()
    for key, value in expected.items():
        assert result[key] == pytest.approx(value, rel=1e-6), key
    assert 0.01 < expected["accuracy"] < expected["top5"] < 0.99


def test_an_evaluation_of_too_few():
    net = tiny()
    source = load_source("digits", "test", limit=3)
    assert net.evaluate(source, 128)["count"] == 3


def test_classes_go_by_their_names():
    """A source whose classes come in another order, and the same source renamed."""
    source = dataclasses.replace(load_source("digits", "test"), classes=LETTERS)
    net = tiny()
    order = np.random.default_rng(0).permutation(10)
    shuffled = dataclasses.replace(
        source,
        classes=tuple(LETTERS[k] for k in order),
        read=lambda i: (source.read(i)[0], int(np.argsort(order)[source.read(i)[1]])),
    )
    assert net.evaluate(shuffled) == net.evaluate(source)
    renamed = dataclasses.replace(shuffled, classes=tuple("ABCDEFGHIJ"))
    assert net.evaluate(renamed)["loss"] != net.evaluate(source)["loss"]


def test_what_cannot_be_evaluated():
    net = tiny()
    source = load_source("digits", "test", limit=8)
    two = dataclasses.replace(source, classes=("odd", "even"))
    message = refusal(net.evaluate, two)
    assert message == "digits has 2 classes, tiny_bn was trained on 10"
    larger = load_source("digits", "test", limit=8, image_size=12)
    assert "images of shape [12, 12, 1]" in refusal(net.evaluate, larger)
    colours = refusal(tiny((8, 8, 3)).evaluate, source)
    assert colours.endswith("takes [8, 8, 3]; its weights are for other colours")


@pytest.mark.long
def test_a_run_evaluates_to_its_last_row(debug_config, tmp_path):
    """With the preprocessing and the classes that its file brings."""
    path = tmp_path / "model.safetensors"
    last = fit(debug_config("tiny_bn", data__preprocess="standardize"), tmp_path)
    net = load_classifier(path)
    result = net.evaluate(load_source("digits", "test", limit=128, image_size=8), 50)
    assert result["count"] == 128
    assert result["loss"] == pytest.approx(last["loss"], rel=1e-5)
    assert result["accuracy"] == pytest.approx(last["accuracy"], abs=1e-9)

    train, _ = as_arrays(load_source("digits", "train", limit=128))
    assert net.preprocess.kind == "standardize"
    pixels = train / 255
    for key, value in (("mean", pixels.mean()), ("std", pixels.std())):
        np.testing.assert_allclose(net.preprocess.arrays[key], [value], rtol=1e-6)
    assert net.classes == tuple("0123456789")
    assert (net.image_shape, net.resize) == ((8, 8, 1), 8)
    variables, _, arrays = load_model(path)
    x = preprocess.apply("standardize", arrays, jnp.asarray(train[:4]))
    expected = net.model.apply(variables, x, train=False)
    np.testing.assert_allclose(net.logits(train[:4]), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["standardize", "gcn_zca"])
def test_a_run_with_mirror_images_evaluates_to_its_last_row(
    debug_config, tmp_path, kind
):
    """gcn_zca has a mean and a matrix of all pixels: it has to come first."""
    config = debug_config("tiny_bn", data__preprocess=kind, eval_flip=True)
    last = fit(config, tmp_path)
    net = load_classifier(tmp_path / "model.safetensors")
    source = load_source("digits", "test", limit=128, image_size=8)
    result = net.evaluate(source, 50, flip=True)
    assert result["loss"] == pytest.approx(last["loss"], rel=1e-5)
    assert result["accuracy"] == pytest.approx(last["accuracy"], abs=1e-9)


# What a file says, and what it does not.


def test_another_preprocessing_replaces_that_of_the_file(tmp_path):
    path = tmp_path / "a.safetensors"
    arrays = {"mean": np.float32([0.2]), "std": np.float32([0.7])}
    tiny(kind="standardize", arrays=arrays).save(path)
    assert load_classifier(path).preprocess == Preprocess("standardize", arrays)
    net = load_classifier(path, preprocess="unit")
    assert (net.preprocess.kind, net.preprocess.arrays) == ("unit", {})
    message = refusal(load_classifier, path, preprocess="gcn_zca")
    assert "does not hold the 'gcn_zca' preprocessing of tiny_bn" in message
    assert "unknown preprocessing 'uint'" in refusal(
        load_classifier, path, preprocess="uint"
    )


def write_npz(path, name, image_shape, **fields):
    variables = random_variables(name, image_shape, **fields)
    np.savez(path, **as_state_dict(variables))
    return path


@pytest.mark.parametrize(
    ("name", "fields", "image_shape"),
    [
        ("tiny_bn", {}, (8, 8, 1)),
        ("tiny_bn", {"num_classes": 3, "dropout": 0.5}, (8, 8, 3)),
        ("resblocks_resized", {"kernels": (1, 3)}, (28, 28, 1)),
        ("resnet20_cifar", {"n": 1, "shortcut": "B"}, (32, 32, 3)),
        ("resnet20_cifar", {"n": 3, "scan_blocks": True}, (32, 32, 3)),
    ],
)
def test_saved_and_loaded_it_is_the_same(tmp_path, name, fields, image_shape):
    """Bit for bit, with the fields that differ from the row's."""
    model = flaxcnn.create_model(name, **fields)
    random = np.random.default_rng(0)
    mean, std = random.uniform(0.1, 0.9, (2, image_shape[2])).astype(np.float32)
    net = Classifier(
        name, model, random_variables(name, image_shape, **fields),
        tuple(f"{k}é" for k in range(model.num_classes)), image_shape, 40,
        Preprocess("standardize", {"mean": mean, "std": std}),
    )  # fmt: skip
    net.save(tmp_path / "a.safetensors")
    again = load_classifier(tmp_path / "a.safetensors")
    for field in ("name", "model", "classes", "image_shape", "resize"):
        assert getattr(again, field) == getattr(net, field)
    pixels = random_pixels(2, *image_shape)
    np.testing.assert_array_equal(again.logits(pixels), net.logits(pixels))
    again.save(tmp_path / "b.safetensors")
    a, b = ((tmp_path / f"{x}.safetensors").read_bytes() for x in "ab")
    assert a == b


@pytest.mark.parametrize(
    ("name", "image_size", "resize", "expected"),
    [
        ("squeezenet1_1", None, None, (224, 256)),
        ("tiny_bn", 224, None, (224, 256)),
        ("tiny_bn", 299, None, (299, 341)),
        ("tiny_bn", 227, 256, (227, 256)),
        ("tiny_bn", 223, None, (223, 223)),
        ("tiny_bn", None, None, (8, 8)),
        ("tiny_bn", None, 10, (8, 10)),
        ("allconv_mnist", None, None, (28, 28)),
        ("allconv_mnist", 32, 40, (32, 40)),
    ],
)
def test_sizes_that_the_file_does_not_say(tmp_path, name, image_size, resize, expected):
    channels = flaxcnn.model_info(name).input_size[2]
    path = write_npz(tmp_path / "a.npz", name, (64, 64, channels))
    net = load_classifier(
        path, name, preprocess="unit", image_size=image_size, resize=resize
    )
    assert net.image_shape == (expected[0], expected[0], channels)
    assert net.resize == expected[1]


def test_sizes_that_the_file_says(tmp_path):
    tiny().save(tmp_path / "a.safetensors")
    for arguments, expected in (
        ({}, (8, 9)),
        ({"resize": 12}, (8, 12)),
        ({"image_size": 16}, (16, 16)),  # the file's resize was for its own crop
        ({"image_size": 16, "resize": 20}, (16, 20)),
    ):
        net = load_classifier(tmp_path / "a.safetensors", **arguments)
        assert (net.image_shape[0], net.resize) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": -5}, "image_size=-5"),
        ({"resize": 7}, "resize=7 is less than the crop"),
        ({"resize": -1}, "resize=-1"),
        ({"image_size": 16, "resize": 12}, "resize=12 is less than the crop"),
        ({"classes": "abc"}, "has 10 classes, but there are 3 names; give one a line"),
        ({"classes": ""}, "has 10 classes, but there are 0 names"),
        ({"model": "tiny_bm"}, "unknown model 'tiny_bm'; did you mean tiny_bn"),
        ({"model": "nin"}, "has weights of tiny_bn, not of nin"),
    ],
)
def test_arguments_that_do_not_fit(tmp_path, arguments, message):
    tiny().save(tmp_path / "a.safetensors")
    assert message in refusal(load_classifier, tmp_path / "a.safetensors", **arguments)


def test_names_of_classes(tmp_path):
    """Given, or the file's, or ImageNet's for 1000, or numbers."""
    path = write_npz(tmp_path / "a.npz", "tiny_bn", (8, 8, 1))
    some = load_classifier(path, "tiny_bn", preprocess="unit")
    assert some.classes == tuple(f"class {k}" for k in range(10))
    given = load_classifier(path, "tiny_bn", preprocess="unit", classes=LETTERS)
    assert given.classes == LETTERS
    tiny().save(tmp_path / "a.safetensors")
    assert load_classifier(tmp_path / "a.safetensors").classes == LETTERS
    numbers = load_classifier(tmp_path / "a.safetensors", classes="0123456789")
    assert numbers.classes == tuple("0123456789")
    shape = (8, 8, 1)
    thousand = write_npz(tmp_path / "b.npz", "tiny_bn", shape, num_classes=1000)
    net = load_classifier(thousand, "tiny_bn", preprocess="unit")
    assert net.classes == imagenet_classes()


def test_a_file_that_does_not_say_its_model(tmp_path):
    path = write_npz(tmp_path / "a.npz", "tiny_bn", (8, 8, 1))
    message = refusal(load_classifier, path)
    assert message == (
        f"{path} does not say which model it is of; give it: --model=<name>"
    )


def test_a_fitted_preprocessing_that_the_file_lacks(tmp_path):
    """All-CNN was trained on whitened images; torch's file has no whitening."""
    path = write_npz(tmp_path / "a.npz", "allcnn_c", (32, 32, 3))
    message = refusal(load_classifier, path, "allcnn_c")
    assert str(path) in message
    assert "does not hold the 'gcn_zca' preprocessing of allcnn_c" in message
    assert "--preprocess=" in message
    net = load_classifier(path, "allcnn_c", preprocess="imagenet")
    np.testing.assert_allclose(net.preprocess.arrays["std"], [0.229, 0.224, 0.225])


def test_a_fitted_preprocessing_without_its_arrays(tmp_path):
    facts = model_facts("tiny_bn", {}, LETTERS, (8, 8, 1), 8, "standardize")
    variables = random_variables("tiny_bn", (8, 8, 1))
    path = tmp_path / "a.safetensors"
    save_model(path, variables, facts, {"mean": np.float32([0.5])})
    assert "does not hold the 'standardize'" in refusal(load_classifier, path)


@pytest.mark.parametrize(
    ("kind", "shapes"),
    [
        ("standardize", {"mean": (3,), "std": (2,)}),
        ("standardize", {"std": (3,)}),
        ("gcn_zca", {"mean": (192,), "matrix": (192,)}),
        ("gcn_zca", {"mean": (192,), "matrix": (192, 3)}),
    ],
)
def test_a_fitted_preprocessing_of_other_shapes(tmp_path, kind, shapes):
    facts = model_facts("tiny_bn", {}, LETTERS, (8, 8, 3), 8, kind)
    arrays = {key: np.ones(shape, np.float32) for key, shape in shapes.items()}
    variables = random_variables("tiny_bn", (8, 8, 3))
    path = tmp_path / "a.safetensors"
    save_model(path, variables, facts, arrays)
    assert f"does not hold the {kind!r}" in refusal(load_classifier, path)


def test_constants_are_not_the_files(tmp_path):
    """Whatever a file holds under a preprocessing that needs nothing of it."""
    facts = model_facts("tiny_bn", {}, LETTERS, (8, 8, 3), 8, "imagenet")
    path = tmp_path / "a.safetensors"
    others = {"other": np.ones(3, np.float32)}
    save_model(path, random_variables("tiny_bn", (8, 8, 3)), facts, others)
    arrays = load_classifier(path).preprocess.arrays
    np.testing.assert_allclose(arrays["mean"], [0.485, 0.456, 0.406])


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"n": "x"}, "no ResNetCIFAR has the fields"),
        ({"n": -1}, "no ResNetCIFAR has the fields"),
        ({"dtype": "x"}, "no ResNetCIFAR has the fields"),
        ({"num_classes": "many"}, "num_classes='many'"),
        ({"depth": 3}, "unknown field of model resnet20_cifar 'depth'"),
    ],
)
def test_fields_that_no_model_has(tmp_path, fields, part):
    """One line, from a file or from the caller."""
    name, shape = "resnet20_cifar", (32, 32, 3)
    variables = random_variables(name, shape)
    path = tmp_path / "a.safetensors"
    facts = model_facts(name, fields, LETTERS, shape, 32, "unit")
    save_model(path, variables, facts, {})
    assert part in refusal(load_classifier, path)
    assert part in refusal(flaxcnn.load_pretrained, name, path)
    save_model(path, variables, {**facts, "fields": {}}, {})
    assert part in refusal(flaxcnn.load_pretrained, name, path, **fields)


def test_features_are_no_classes(tmp_path):
    name, shape = "resnet20_cifar", (32, 32, 3)
    facts = model_facts(name, {"num_classes": 0}, (), shape, 32, "unit")
    variables = random_variables(name, shape, num_classes=0)
    path = tmp_path / "a.safetensors"
    save_model(path, variables, facts, {})
    assert "has no classes" in refusal(load_classifier, path)
    model, loaded = flaxcnn.load_pretrained(name, path)
    assert model.num_classes == 0
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)
