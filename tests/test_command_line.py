"""The commands as a user types them, with and without mistakes."""

import os
import re
import resource
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from PIL import Image

from flaxcnn import cli, create_model
from flaxcnn.data.sources import load_source
from flaxcnn.inference import Classifier, load_classifier
from flaxcnn.structure import variable_shapes
from flaxcnn.weights.files import load_model, model_facts, save_model
from flaxcnn.weights.torch import as_state_dict
from tests.paths import REAL_DATA, ROOT

DEBUG = "--config=configs/debug.py"


def assert_one_line(done, *parts):
    """Failed, with one line on stderr and no traceback."""
    assert done.returncode not in (0, None)
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    for part in parts:
        assert part in lines[0]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([DEBUG, "--config.batch_siz=3"], ["'batch_siz'", "batch_size"]),
        (["--config=configs/allcn_c.py"], ["configs/allcn_c.py", "allcnn_c.py"]),
        ([f"{DEBUG}:resnet1"], ["unknown model 'resnet1'"]),
        ([DEBUG, "--lr=3"], ["'--lr=3'", "--config.<key>=<value>"]),
        ([DEBUG, "--config.batch_size=33"], ["33", "2 devices", "use 32"]),
    ],
)
def test_mistakes_are_one_line(train_py, tmp_path, arguments, parts):
    assert_one_line(train_py(*arguments, f"--workdir={tmp_path}", devices=2), *parts)


def test_without_a_network_it_says_what_to_do_at_once(train_py, tmp_path):
    refused = "http://127.0.0.1:9"
    started = time.monotonic()
    done = train_py(
        "--config=configs/allcnn_c.py", f"--workdir={tmp_path / 'run'}",
        TFDS_DATA_DIR=str(tmp_path / "data"), https_proxy=refused, http_proxy=refused,
    )  # fmt: skip
    assert time.monotonic() - started < 15
    assert_one_line(
        done, "cifar-10", str(tmp_path / "data"),
        "python train.py --config configs/allcnn_c.py:digits",
    )  # fmt: skip


@pytest.mark.long
def test_a_full_disk_costs_no_checkpoint(train_py, tmp_path):
    """A limit on the size of files, as a quota sets it: writes fail half way."""
    options = (f"{DEBUG}:strided_cnn_a", "--config.data.image_size=12",
               "--config.steps=60", "--config.checkpoint_every=20 steps")  # fmt: skip
    process = train_py(*options, f"--workdir={tmp_path / 'full'}", wait=False)
    while not (tmp_path / "full" / "checkpoints" / "20").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (200_000, 200_000))
    _, process.stderr = process.communicate(timeout=120)
    assert process.returncode == 1
    assert_one_line(
        process, "no room on the disk", "the checkpoint of step 20 is whole"
    )

    again = train_py(*options, f"--workdir={tmp_path / 'full'}")
    assert again.returncode == 0, again.stderr
    assert "continuing from step 20" in again.stdout
    whole = train_py(*options, f"--workdir={tmp_path / 'whole'}")
    assert whole.returncode == 0, whole.stderr
    a, b = (
        load_model(tmp_path / name / "model.safetensors")[0]
        for name in ("full", "whole")
    )
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_list(capsys):
    cli.main(["list", "allcnn_?"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [
        ["allcnn_a", "1,254,250"], ["allcnn_b", "1,300,618"], ["allcnn_c", "1,369,738"],
    ]  # fmt: skip


def test_list_takes_under_a_second_and_no_jax():
    code = (
        "import sys; from flaxcnn.cli import main; main(['list']);"
        "assert 'jax' not in sys.modules and 'flax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_summary(capsys):
    cli.main(["summary", "allconv_mnist"])
    out = capsys.readouterr().out
    assert "conv7" in out
    assert "6,006" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["list", "resnoxt*"], "no model matches 'resnoxt*'"),
        (["summary", "allcnn"], "unknown model 'allcnn'; did you mean"),
        (["prepare", "cifar11"], "cifar10"),
    ],
)
def test_mistakes_of_flaxcnn(arguments, message):
    with pytest.raises(SystemExit) as error:
        cli.main(arguments)
    assert message in str(error.value.code)


# Weights: convert, predict, evaluate.

NAMES = [f"number {k}" for k in range(10)]


@pytest.fixture
def weights(tmp_path):
    """A native file of a network for grey images of 8 x 8."""
    random = np.random.default_rng(0)
    shapes = variable_shapes(create_model("tiny_bn"), (8, 8, 1))
    variables = jax.tree.map(
        lambda leaf: random.uniform(0.1, 1, leaf.shape).astype(np.float32), shapes
    )
    fields = {"num_classes": 10, "dropout": 0.0}
    facts = model_facts("tiny_bn", fields, NAMES, (8, 8, 1), 8, "unit")
    path = tmp_path / "weights.safetensors"
    save_model(path, variables, facts, {})
    return path


@pytest.fixture
def photographs(tmp_path):
    """A folder of three images and something else."""
    folder = tmp_path / "photographs"
    (folder / "below").mkdir(parents=True)
    random = np.random.default_rng(0)
    for name, shape in {
        "a.png": (8, 8), "b.jpg": (20, 30, 3), "below/c.png": (9, 8),
    }.items():  # fmt: skip
        pixels = random.integers(0, 256, shape, np.uint8)
        Image.fromarray(pixels).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


def run(*arguments):
    cli.main([str(argument) for argument in arguments])


def failure(*arguments):
    """The line that a command ends with."""
    with pytest.raises(SystemExit) as error:
        run(*arguments)
    message = str(error.value.code)
    assert message.startswith("error: ")
    assert "\n" not in message
    return message


def printed(out):
    """[(path, [(class, percent)])] of what `predict` prints."""
    images = []
    for line in out.splitlines():
        if found := re.fullmatch(r" +(\d+\.\d\d)%  (.+)", line):
            images[-1][1].append((found[2], float(found[1])))
        else:
            images.append((line, []))
    return images


@pytest.mark.parametrize(("options", "top"), [([], 5), (["--top=2"], 2)])
def test_predict(weights, photographs, capsys, options, top):
    """A folder and files, in this order; the classes that the classifier gives."""
    last = photographs / "a.png"
    run("predict", photographs, last, "--weights", weights, *options)
    images = printed(capsys.readouterr().out)
    assert [path for path, _ in images] == [
        str(photographs / name) for name in ("a.png", "b.jpg", "below/c.png", "a.png")
    ]
    net = load_classifier(weights)
    for path, classes in images:
        (expected,) = net.predict(net.read(path)[None], top)
        assert [name for name, _ in classes] == [name for name, _ in expected]
        for (_, percent), (_, probability) in zip(classes, expected, strict=True):
            assert percent == pytest.approx(100 * probability, abs=0.0051)
    assert images[0][1] == images[3][1] != images[1][1]


def test_how_images_are_seen_is_said(weights, photographs, tmp_path, capsys):
    """A file of others does not tell: the usual way of its network is a guess."""
    run("convert", weights, tmp_path / "a.npz")
    image = photographs / "a.png"
    run("predict", image, "--weights", tmp_path / "a.npz", "--model=tiny_bn",
        "--preprocess=unit", "--resize=10")  # fmt: skip
    assert capsys.readouterr().err == (
        "tiny_bn: images of 8 pixels, cut from 10; preprocessing unit\n"
    )


def test_a_mistyped_option_shows_those_of_its_command(weights, capsys):
    with pytest.raises(SystemExit):
        run("predict", "a.png", "--weights", weights, "--imagesize=8")
    err = capsys.readouterr().err
    assert "unrecognized arguments: --imagesize=8" in err
    assert "--image_size" in err
    assert "--data_dir" not in err


def test_predict_with_names_from_a_file(weights, photographs, tmp_path, capsys):
    (tmp_path / "names.txt").write_text("".join(f"{n} é\n" for n in NAMES))
    image = photographs / "a.png"
    run("predict", image, "--weights", weights, f"--classes={tmp_path / 'names.txt'}")
    run("predict", image, "--weights", weights)
    (_, renamed), (_, classes) = printed(capsys.readouterr().out)
    assert renamed == [(f"{name} é", percent) for name, percent in classes]


def test_a_bad_image_among_good_ones(weights, photographs, capsys):
    page = photographs / "b.jpg"
    page.write_text("<!DOCTYPE html>")
    missing = photographs / "d.png"
    message = failure("predict", photographs, missing, "--weights", weights)
    images = printed(capsys.readouterr().out)
    assert [path for path, _ in images] == [
        str(photographs / name) for name in ("a.png", "below/c.png")
    ]
    assert all(len(classes) == 5 for _, classes in images)
    assert f"{page}: not an image" in message
    assert f"{missing}: no such file" in message


def test_evaluate(weights, capsys):
    run("evaluate", "--weights", weights, "--data=digits", "--batch_size=100")
    expected = load_classifier(weights).evaluate(load_source("digits", "test"))
    assert capsys.readouterr().out == (
        f"tiny_bn on digits, test: accuracy {expected['accuracy']:.2%}, top-5 "
        f"{expected['top5']:.2%}, loss {expected['loss']:.4f}, 359 images\n"
    )
    run("evaluate", "--weights", weights, "--data=digits", "--flip")
    both = load_classifier(weights).evaluate(load_source("digits", "test"), flip=True)
    assert capsys.readouterr().out.endswith(
        f"loss {both['loss']:.4f}, 359 images, each and its mirror image\n"
    )
    assert f"{both['loss']:.4f}" != f"{expected['loss']:.4f}"
    for arguments, count in ((["--split=train"], "1,438"), (["--limit=7"], "7")):
        run("evaluate", "--weights", weights, "--data=digits", *arguments)
        assert capsys.readouterr().out.endswith(f", {count} images\n")


def test_evaluate_makes_the_images_as_large_as_they_have_to_be(weights, capsys):
    options = ("--weights", weights, "--data=digits", "--image_size=16")
    run("evaluate", *options)
    source = load_source("digits", "test", image_size=16)
    expected = load_classifier(weights, image_size=16).evaluate(source)
    assert f"loss {expected['loss']:.4f}, 359 images" in capsys.readouterr().out


def test_convert_there_and_back(weights, tmp_path, capsys):
    """Native to torch's, to native, to torch's: the same bits and keys."""
    torch = pytest.importorskip("torch")
    variables, facts, _ = load_model(weights)
    expected = as_state_dict(variables)
    first, second, native = (tmp_path / n for n in ("a.pth", "b.pth", "c.safetensors"))
    run("convert", weights, first)
    names = tmp_path / "names.txt"
    names.write_text("\n".join(NAMES))
    run("convert", first, native, "--model=tiny_bn", "--preprocess=unit",
        f"--classes={names}")  # fmt: skip
    run("convert", native, second)
    count = sum(x.size for x in jax.tree.leaves(variables["params"]))
    assert capsys.readouterr().out.splitlines() == [
        f"{path}: tiny_bn, {count} parameters" for path in (first, native, second)
    ]
    for path in (first, second):
        state = torch.load(path, weights_only=True)
        assert state.keys() == expected.keys()
        for key, tensor in state.items():
            assert tensor.dtype == torch.float32
            assert tensor.is_contiguous()
            np.testing.assert_array_equal(tensor.numpy(), expected[key])
    again, metadata, _ = load_model(native)
    jax.tree.map(np.testing.assert_array_equal, again, variables)
    assert metadata == facts
    assert not list(tmp_path.glob("*.part"))


def test_convert_invents_no_names_of_classes(weights, tmp_path):
    run("convert", weights, tmp_path / "a.npz")
    run("convert", tmp_path / "a.npz", tmp_path / "b.safetensors", "--model=tiny_bn",
        "--preprocess=unit")  # fmt: skip
    _, facts, _ = load_model(tmp_path / "b.safetensors")
    assert "classes" not in facts


def test_convert_needs_no_preprocessing_for_torch(weights, tmp_path):
    """What a state_dict does not hold is not asked for."""
    variables = load_model(weights)[0]
    facts = {"model": "tiny_bn", "fields": {}, "image_shape": [8, 12, 1]}
    save_model(tmp_path / "a.safetensors", variables, facts, {})
    run("convert", tmp_path / "a.safetensors", tmp_path / "b.npz")
    expected = as_state_dict(variables)
    with np.load(tmp_path / "b.npz") as arrays:
        for key, array in expected.items():
            np.testing.assert_array_equal(arrays[key], array)


def test_convert_to_npz(weights, tmp_path):
    run("convert", weights, tmp_path / "a.npz")
    expected = as_state_dict(load_model(weights)[0])
    with np.load(tmp_path / "a.npz") as arrays:
        assert set(arrays) == set(expected)
        for key, array in expected.items():
            np.testing.assert_array_equal(arrays[key], array)
            assert arrays[key].dtype == np.float32


def test_convert_to_the_file_that_is_read(weights):
    before = weights.read_bytes()
    run("convert", weights, weights)
    variables, facts, _ = load_model(weights)
    assert weights.read_bytes() == before
    run("convert", weights, weights, "--resize=12")
    again, changed, _ = load_model(weights)
    jax.tree.map(np.testing.assert_array_equal, again, variables)
    assert changed == {**facts, "resize": 12}


def test_what_is_exported_runs_without_this_library(weights, tmp_path, capsys):
    out, images, found = (tmp_path / n for n in ("a.stablehlo", "x.npy", "y.npy"))
    run("export", weights, out, "--batch_size=3")
    assert "of uint8 [3, 8, 8, 1] gives logits" in capsys.readouterr().out
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
    np.save(images, pixels)
    code = """
import sys
sys.modules["flax"] = sys.modules["flaxcnn"] = None
import jax.export, numpy as np

program, images, found = sys.argv[1:]
exported = jax.export.deserialize(open(program, "rb").read())
np.save(found, exported.call(np.load(images)))
print(*exported.platforms)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, out, images, found],
        capture_output=True, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert done.stdout == "cpu cuda tpu\n", done.stderr
    expected = load_classifier(weights).logits(pixels)
    np.testing.assert_allclose(np.load(found), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("predict {empty} --weights {weights}", "{empty}: no images in this folder"),
        ("predict {tmp}/no --weights {weights}", "{tmp}/no: no such file"),
        ("predict {image} --weights {tmp}/no.npz", "no file {tmp}/no.npz"),
        ("predict {image} --weights {image}", "{image}: not a file of torch.save"),
        ("predict {image} --weights {tmp}", "no file {tmp}"),
        ("predict {image} --weights vgg61", "unknown model with published weights"),
        ("predict {image} --weights {weights} --top=0", "--top=0; at least 1"),
        ("predict {image} --weights {weights} --top=-1", "--top=-1; at least 1"),
        ("predict {image} --weights {weights} --classes={tmp}/no", "No such file"),
        ("predict {image} --weights {weights} --classes={image}", "utf-8"),
        ("predict {image} --weights {weights} --image_size=-1", "image_size=-1"),
        ("predict {image} --weights {weights} --preprocess=imagenet", "have 1"),
        ("evaluate --weights {weights} --data=digit", "unknown data set 'digit'"),
        ("evaluate --weights {weights} --data=digits --split=x", "unknown split"),
        ("evaluate --weights {weights} --data=digits --limit=-1", "limit=-1"),
        ("evaluate --weights {weights} --data=digits --batch_size=0", "at least 1"),
        ("evaluate --weights {weights} --data=folder:{tmp}", "no directory {tmp}"),
        ("convert {weights} {tmp}/a.h5", "{tmp}/a.h5: write .safetensors, .npz"),
        ("convert {weights} {tmp}/a", "{tmp}/a: write .safetensors, .npz or .pth"),
        ("convert {weights} {tmp}/no/a.npz", "no directory {tmp}/no; make it first"),
        ("convert {weights} {tmp}/no/a.pth", "no directory {tmp}/no; make it first"),
        ("convert {weights} {folder}", "{folder}: cannot be written"),
        ("convert {tmp}/no.pth {tmp}/a.npz", "no file {tmp}/no.pth"),
        ("export {tmp}/no.pth {tmp}/a.npz", "no file {tmp}/no.pth"),
        ("export {weights} {tmp}/no/a", "no directory {tmp}/no; make it first"),
        ("export {weights} {folder}", "{folder}: cannot be written"),
        ("export {weights} {tmp}/a.npz --batch_size=0", "batch_size=0; it must be at"),
        ("convert {weights} {tmp}/a.npz --model=nin", "has weights of tiny_bn, not"),
        ("convert {weights} {tmp}/a.npz --model=nix", "unknown model 'nix'"),
    ],
)
def test_mistakes_with_weights(weights, photographs, tmp_path, arguments, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "folder.npz").mkdir()
    names = {
        "weights": weights, "tmp": tmp_path, "image": photographs / "a.png",
        "empty": tmp_path / "empty", "folder": tmp_path / "folder.npz",
    }  # fmt: skip
    words = [word.format(**names) for word in arguments.split()]
    assert message.format(**names) in failure(*words)
    assert not (tmp_path / "a.npz").exists()


def test_nobody_reads_on_or_there_is_no_room(photographs, tmp_path):
    """`| head -1` ends quietly, a full device in a line."""
    shapes = variable_shapes(create_model("allconv_mnist"), (28, 28, 1))
    variables = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes)
    facts = model_facts("allconv_mnist", {}, NAMES, (28, 28, 1), 28, "unit")
    save_model(tmp_path / "a.safetensors", variables, facts, {})
    program = "import sys; from flaxcnn.cli import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", program, "predict", photographs]
    command += ["--weights", tmp_path / "a.safetensors"]
    seen = "allconv_mnist: images of 28 pixels, cut from 28; preprocessing unit"

    def lines(stdout):
        done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True)
        assert done.returncode == 1
        return done.stderr.splitlines()

    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as closed:
        assert lines(closed) == [seen]
    with open("/dev/full", "w") as full:
        cause = "error: No space left on device; make room, try again"
        assert lines(full) == [seen, cause]


def test_weights_that_give_no_numbers(weights, photographs, tmp_path):
    variables, facts, _ = load_model(weights)
    variables = jax.tree.map(lambda x: x * np.float32(1e30), variables)
    path = tmp_path / "large.safetensors"
    save_model(path, variables, facts, {})
    message = "outputs that are not finite"
    assert message in failure("predict", photographs, "--weights", path)
    assert message in failure("evaluate", "--data=digits", "--weights", path)


def test_a_batch_is_no_larger_than_the_data(weights, monkeypatch):
    sizes = []
    logits = Classifier.logits

    def counted(self, images, flip):
        sizes.append(len(images))
        return logits(self, images, flip)

    monkeypatch.setattr(Classifier, "logits", counted)
    run("evaluate", "--weights", weights, "--data=digits", "--limit=3",
        "--batch_size=1000000")  # fmt: skip
    assert sizes == [3]


def test_names_are_shown_as_text(weights, photographs, tmp_path, capsys):
    """No control characters to the terminal; a mark of byte order is no name."""
    names = ["\x1b[31mred", "\ufeffzero", *NAMES[2:]]
    facts = model_facts("tiny_bn", {}, names, (8, 8, 1), 8, "unit")
    variables, _, _ = load_model(weights)
    save_model(tmp_path / "b.safetensors", variables, facts, {})
    image = photographs / "a.png"
    run("predict", image, "--weights", tmp_path / "b.safetensors", "--top=10")
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "'\\x1b[31mred'" in out
    (tmp_path / "names.txt").write_text("\n".join(NAMES), encoding="utf-8-sig")
    run("predict", image, "--weights", weights, f"--classes={tmp_path / 'names.txt'}",
        "--top=10")  # fmt: skip
    ((_, classes),) = printed(capsys.readouterr().out)
    assert sorted(name for name, _ in classes) == NAMES


def test_a_path_of_two_lines_is_one_in_the_message(weights):
    assert r"no file a\nb.npz" in failure("predict", "x", "--weights", "a\nb.npz")


def test_colour_for_a_grey_network(weights, tmp_path):
    """A folder's images are RGB; the network has one channel."""
    for split in ("train", "test"):
        for k in range(10):
            folder = tmp_path / "data" / split / f"class{k}"
            folder.mkdir(parents=True)
            Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(folder / "a.png")
    message = failure("evaluate", "--weights", weights,
                      f"--data=folder:{tmp_path / 'data'}")  # fmt: skip
    assert "has images of shape [8, 8, 3], tiny_bn takes [8, 8, 1]" in message


# Published weights on real images.


@pytest.mark.long
@pytest.mark.skipif(
    not (REAL_DATA / "tfds").is_dir(), reason="needs ../shared/data/tfds"
)
def test_the_published_accuracy_of_resnet20(capsys):
    """91.73 % on all of CIFAR-10's test set, as its author gives it."""
    run("evaluate", "--weights", REAL_DATA / "weights" / "resnet20-12fca82f.th",
        "--data=tfds:cifar10", "--data_dir", REAL_DATA / "tfds")  # fmt: skip
    out = capsys.readouterr().out
    assert out.startswith("resnet20_cifar on tfds:cifar10, test: accuracy ")
    assert out.endswith(", 10,000 images\n")
    accuracy = float(re.search(r"accuracy (\d+\.\d+)%", out)[1])
    assert accuracy == pytest.approx(91.73, abs=0.02)


@pytest.mark.long
@pytest.mark.skipif(
    not (REAL_DATA / "hymenoptera").is_dir(), reason="needs ../shared/data/hymenoptera"
)
def test_squeezenet_sees_ants_and_bees(capsys):
    """397 photographs; with another preprocessing it sees far fewer."""
    path = REAL_DATA / "weights" / "squeezenet1_1_caffe.pth"

    def shares(kind):
        """Of photographs with their insect first, and among the first five."""
        run("predict", REAL_DATA / "hymenoptera", "--weights", path,
            "--model=squeezenet1_1", f"--preprocess={kind}", "--image_size=227",
            "--resize=256")  # fmt: skip
        images = printed(capsys.readouterr().out)
        assert len(images) == 397
        first = five = 0
        for image, classes in images:
            insect = "bee" if "/bees/" in image else "ant"
            names = [name for name, _ in classes]
            first += names[0] == insect
            five += insect in names
        return first / len(images), five / len(images)

    first, five = shares("caffe")
    assert first > 0.55
    assert five > 0.78
    control, _ = shares("imagenet")
    assert control < first - 0.1
