"""Networks of files of every kind, against the torch networks that wrote them."""

import copy
import dataclasses
import functools
import hashlib
import itertools
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import flaxcnn
from flaxcnn import registry
from flaxcnn.errors import FlaxcnnError
from flaxcnn.inference import load_classifier
from flaxcnn.structure import variable_shapes
from flaxcnn.weights import catalog
from flaxcnn.weights.catalog import Weights
from flaxcnn.weights.files import model_facts, save_model
from flaxcnn.weights.pretrained import load_pretrained, open_weights
from flaxcnn.weights.torch import as_state_dict, from_torch

NAMES = ("allconv_mnist", "resblocks_resized", "resnet20_cifar")
HEADS = {
    "allconv_mnist": "conv7",
    "resblocks_resized": "fc",
    "resnet20_cifar": "linear",
}


# torch's networks, written from the papers.


def torch_network(name, num_classes=10):
    """With random weights and batch statistics, for evaluation."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    net = networks()[name](num_classes)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data.uniform_(0.6, 1.4)
            module.bias.data.uniform_(-0.3, 0.3)
            module.running_mean.uniform_(-0.3, 0.3)
            module.running_var.uniform_(0.6, 1.4)
            module.num_batches_tracked.fill_(7)
    return net.eval()


@functools.cache
def networks():
    import torch
    from torch import nn
    from torch.nn import functional

    class AllConv(nn.Module):
        def __init__(self, num_classes):
            super().__init__()
            widths = (1, 4, 4, 8, 8, 16, 16, num_classes)
            for i, (before, after) in enumerate(itertools.pairwise(widths)):
                conv = nn.Conv2d(before, after, 3, 1 + i % 2, 1)
                self.add_module(f"conv{i + 1}", conv)

        def features(self, x):
            for i in range(1, 7):
                x = functional.relu(self.get_submodule(f"conv{i}")(x))
            return x

        def forward(self, x):
            return functional.relu(self.conv7(self.features(x))).mean((2, 3))

    class Branches(nn.Module):
        """The lecture's block: the shortcut is a strided convolution."""

        def __init__(self, before, inner, after):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(before, inner, 3, 2, 1), bn(inner)
            self.conv2, self.bn2 = nn.Conv2d(inner, after, 1), bn(after)
            self.conv_shortcut = nn.Conv2d(before, after, 1, 2)
            self.bn_shortcut = bn(after)

        def forward(self, x):
            y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
            return functional.relu(y + self.bn_shortcut(self.conv_shortcut(x)))

    class ResBlocks(nn.Module):
        def __init__(self, num_classes):
            super().__init__()
            self.block1, self.block2 = Branches(1, 4, 8), Branches(8, 16, 32)
            self.fc = nn.Linear(7 * 7 * 32, num_classes)

        def forward(self, x):
            return self.fc(self.block2(self.block1(x)).flatten(1))

    class Block(nn.Module):
        def __init__(self, before, after):
            super().__init__()
            stride, self.extra = 1 + (before != after), after - before
            self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
            self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
            self.bn1, self.bn2 = bn(after), bn(after)

        def forward(self, x):
            y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
            if self.extra:
                pad = self.extra // 2
                x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, pad, pad))
            return functional.relu(x + y)

    class ResNet20(nn.Module):
        def __init__(self, num_classes):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), bn(16)
            for i, before in ((1, 16), (2, 16), (3, 32)):
                after = 8 << i
                blocks = [Block(before, after), Block(after, after)]
                stage = nn.Sequential(*blocks, Block(after, after))
                self.add_module(f"layer{i}", stage)
            self.linear = nn.Linear(64, num_classes)

        def forward(self, x):
            x = functional.relu(self.bn1(self.conv1(x)))
            return self.linear(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))

    bn = nn.BatchNorm2d
    assert torch.get_default_dtype() == torch.float32
    return dict(zip(NAMES, (AllConv, ResBlocks, ResNet20), strict=True))


def random_images(name, batch=2):
    shape = (batch, *flaxcnn.model_info(name).input_size)
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def torch_logits(net, x):
    import torch

    with torch.no_grad():
        return net(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy()


@functools.cache
def forward(model):
    return jax.jit(functools.partial(model.apply, train=False))


def assert_same_logits(name, model, variables, net):
    x = random_images(name)
    expected = torch_logits(net, x)
    ours = np.asarray(forward(model)(variables, x))
    assert ours.shape == expected.shape
    assert np.linalg.norm(expected - expected.mean()) > 0.01
    assert np.linalg.norm(ours - expected) < 1e-5 * np.linalg.norm(expected)


# Files of every kind.


def numpy_state(net):
    return {key: array.numpy() for key, array in net.state_dict().items()}


def write(kind, path, net, name):
    """Writes a network's weights; `kind` ends with the file's suffix."""
    import safetensors.torch
    import torch

    state = {key: array.contiguous() for key, array in net.state_dict().items()}
    prefixed = {f"module.{key}": array for key, array in state.items()}
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1).state_dict()
    match kind.split("."):
        case "legacy", "pth":
            torch.save(state, path, _use_new_zipfile_serialization=False)
        case "state_dict", "pth":
            torch.save({"state_dict": prefixed, "best_prec1": 91.7, "epoch": 3}, path)
        case "model", "pth":
            torch.save({"model": state, "optimizer": optimizer, "epoch": 3}, path)
        case _, "pth":
            torch.save(net.state_dict(), path)
        case "plain", "npz":
            np.savez(path, **numpy_state(net))
        case "compressed", "npz":
            np.savez_compressed(path, **numpy_state(net))
        case "native", "safetensors":
            other = path.with_name("other.pth")
            torch.save(state, other)
            load_classifier(other, name, preprocess="unit").save(path)
        case _, "safetensors":
            safetensors.torch.save_file(state, path, {"format": "pt"})
    return path


def in_precision(net, kind):
    """The network with weights as a file of this kind has them, and its logits."""
    import torch

    net = copy.deepcopy(net)
    types = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp64": torch.float64}
    return net.to(types.get(kind.split(".")[0], torch.float32))


KINDS = (
    "zip.pth", "legacy.pth", "fp16.pth", "bf16.pth", "fp64.pth", "state_dict.pth",
    "model.pth", "plain.npz", "compressed.npz", "foreign.safetensors",
    "fp16.safetensors", "bf16.safetensors", "native.safetensors",
)  # fmt: skip
EACH = pytest.mark.parametrize(
    "name", [*NAMES[:2], pytest.param(NAMES[2], marks=pytest.mark.long)]
)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param(
            name,
            kind,
            marks=[]
            if name != NAMES[2] or kind == "native.safetensors"
            else pytest.mark.long,
        )
        for name in NAMES
        for kind in KINDS
    ],
)
def test_the_logits_are_those_of_the_network_that_wrote_the_file(tmp_path, name, kind):
    written = in_precision(torch_network(name), kind)
    path = write(kind, tmp_path / kind, written, name)
    model, variables = load_pretrained(name, path)
    assert {x.dtype for x in jax.tree.leaves(variables)} == {np.dtype("float32")}
    assert_same_logits(name, model, variables, written.float())


# Numbers of classes.


def assert_identical(a, b):
    a, b = flatten_dict(a), flatten_dict(b)
    assert a.keys() == b.keys()
    for key, array in a.items():
        np.testing.assert_array_equal(array, b[key], err_msg=str(key))


def without_head(name, variables):
    flat = flatten_dict(variables)
    return {path: x for path, x in flat.items() if path[1] != HEADS[name]}


@EACH
def test_the_file_says_how_many_classes(tmp_path, name):
    net = torch_network(name, num_classes=7)
    path = write("zip.pth", tmp_path / "seven.pth", net, name)
    model, variables = load_pretrained(name, path)
    assert model.num_classes == 7
    assert_same_logits(name, model, variables, net)
    again = load_pretrained(name, path, num_classes=7)
    assert again[0] == model
    assert_identical(again[1], variables)


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["plain.npz", "native.safetensors"])
def test_another_number_of_classes_is_a_new_head_alone(tmp_path, name, kind):
    net = torch_network(name)
    path = write(kind, tmp_path / kind, net, name)
    model, variables = load_pretrained(name, path, num_classes=3)
    assert model.num_classes == 3
    old = without_head(name, from_torch(name, net.state_dict()))
    assert_identical(without_head(name, variables), old)
    init = jax.jit(functools.partial(model.init, train=False))
    drawn = init(jax.random.key(0), jnp.zeros(random_images(name).shape))
    for key, array in flatten_dict(drawn).items():
        if key not in old:
            ours = flatten_dict(variables)[key]
            np.testing.assert_allclose(ours, array, rtol=1e-6, atol=1e-8)
    logits = forward(model)(variables, random_images(name))
    assert logits.shape == (2, 3)


@EACH
@pytest.mark.parametrize("kind", ["zip.pth", "native.safetensors"])
def test_no_classes_are_features(tmp_path, name, kind):
    net = torch_network(name)
    path = write(kind, tmp_path / kind, net, name)
    model, variables = load_pretrained(name, path, num_classes=0)
    x = random_images(name)
    if name == "allconv_mnist":
        net.forward = lambda x: net.features(x).mean((2, 3))
        expected = torch_logits(net, x)
    else:
        seen = []
        net.get_submodule(HEADS[name]).register_forward_hook(
            lambda module, args, y: seen.append(args[0])
        )
        torch_logits(net, x)
        expected = seen[0].numpy()
    ours = np.asarray(forward(model)(variables, x))
    if name == "resblocks_resized":  # torch flattens channels first
        ours = ours.reshape(-1, 7, 7, 32).transpose(0, 3, 1, 2).reshape(len(x), -1)
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


# Without torch: files of tiny_bn, for images of three channels.


def random_state(seed=0, name="tiny_bn", image_shape=(8, 8, 3), **fields):
    shapes = variable_shapes(flaxcnn.create_model(name, **fields), image_shape)
    random = np.random.default_rng(seed)
    return as_state_dict(
        jax.tree.map(lambda leaf: random.random(leaf.shape, np.float32), shapes)
    )


def write_npz(path, state):
    with open(path, "wb") as file:
        np.savez(file, **state)
    return path


def write_native(path, state, **facts):
    known = model_facts("tiny_bn", {"num_classes": 10}, "abcdefghij", (8, 8, 3), 9,
                        "unit")  # fmt: skip
    tree = from_torch("tiny_bn", state, num_classes=len(state["fc.bias"]))
    save_model(path, tree, {**known, **facts}, {})
    return path


def refusal(call, *args, **kwargs):
    """The message of the error: one line."""
    with pytest.raises(FlaxcnnError) as error:
        call(*args, **kwargs)
    message = str(error.value)
    assert "\n" not in message
    return message


def assert_refused(path, *parts, name="tiny_bn"):
    """By `load_pretrained` and by `load_classifier`, with these words."""
    for message in (
        refusal(load_pretrained, name, path),
        refusal(load_classifier, path, name, preprocess="unit"),
    ):
        for part in (str(path), *parts):
            assert part in message


@pytest.fixture(autouse=True)
def three_channels(monkeypatch):
    """The row of tiny_bn says one; published images have three."""
    row = registry._rows["tiny_bn"]
    info = dataclasses.replace(row.info, input_size=(8, 8, 3), preprocess="unit")
    changed = dataclasses.replace(row, info=info)
    monkeypatch.setitem(registry._rows, "tiny_bn", changed)


@pytest.fixture
def state():
    return random_state()


@pytest.mark.parametrize("native", [False, True])
def test_a_new_head_is_drawn_from_seed_0_and_all_else_stays(tmp_path, state, native):
    if native:
        path = write_native(tmp_path / "a.safetensors", state)
    else:
        path = write_npz(tmp_path / "a.npz", state)
    model, variables = load_pretrained("tiny_bn", path, num_classes=4)
    assert model.num_classes == 4
    drawn = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False)
    new, kept = variables["params"].pop("fc"), from_torch("tiny_bn", state)
    np.testing.assert_allclose(new["kernel"], drawn["params"]["fc"]["kernel"], 1e-6)
    np.testing.assert_array_equal(new["bias"], np.zeros(4))
    del kept["params"]["fc"]
    assert_identical(variables, kept)


# Files that do not fit.


def test_everything_wrong_is_listed_in_one_line(tmp_path, state):
    del state["bn.weight"]
    state["conv.weight"] = np.zeros((8, 3, 5, 5), np.float32)
    state["stem.weight"] = np.zeros(3)
    state["line\nbreak"] = np.zeros(3)
    assert_refused(
        write_npz(tmp_path / "a.npz", state),
        "is not tiny_bn's", "missing bn.weight", "unexpected stem.weight",
        "conv.weight has shape (8, 3, 5, 5), not (8, 3, 3, 3)", r"'line\nbreak'",
    )  # fmt: skip


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("key", ["conv.weight", "bn.running_var", "fc.bias"])
def test_values_that_are_not_finite_are_named(tmp_path, state, key, value):
    state[key].flat[-1] = value
    path = write_npz(tmp_path / "a.npz", state)
    assert_refused(path, f"{key} has values that are not finite")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fc.weight": None, "fc.bias": None}, "missing fc.bias; missing fc.weight"),
        ({"fc.bias": None}, "missing fc.bias"),
        ({"fc.weight": (10, 9)}, "fc.weight has shape (10, 9), not (10, 8)"),
        ({"fc.bias": (3,)}, "fc.weight has shape (10, 8), not (3, 8)"),
        ({"fc.weight": ()}, "fc.weight has shape (), not (10, 8)"),
    ],
)
def test_no_head_is_drawn_unless_asked_for(tmp_path, state, changes, message):
    """A head that is damaged is an error, not another number of classes."""
    for key, shape in changes.items():
        del state[key]
        if shape is not None:
            state[key] = np.zeros(shape, np.float32)
    path = write_npz(tmp_path / "a.npz", state)
    assert_refused(path, message)
    _, variables = load_pretrained("tiny_bn", path, num_classes=4)
    assert variables["params"]["fc"]["kernel"].shape == (8, 4)
    np.testing.assert_array_equal(
        variables["params"]["conv"]["kernel"],
        state["conv.weight"].transpose(2, 3, 1, 0),
    )


def test_a_damaged_head_of_as_many_classes_is_not_replaced(tmp_path, state):
    state["fc.weight"] = np.zeros((10, 9), np.float32)
    path = write_npz(tmp_path / "a.npz", state)
    message = refusal(load_pretrained, "tiny_bn", path, num_classes=10)
    assert "fc.weight has shape (10, 9), not (10, 8)" in message


def test_a_native_file_of_another_model(tmp_path, state):
    path = write_native(tmp_path / "model.safetensors", state)
    assert_refused(path, "has weights of tiny_bn, not of nin; load tiny_bn", name="nin")


def test_torch_files_that_hold_no_state_dict(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "a.pth"
    for saved in ([torch.ones(1)], torch.ones(3), {1: torch.ones(1)}, 7):
        torch.save(saved, path)
        assert_refused(path, "holds no state_dict")
    torch.save({"state_dict": {1: torch.ones(1)}}, path)
    assert_refused(path, "missing fc.weight", "unexpected 1")
    torch.save({"state_dict": {"fc.weight": "words"}}, path)
    assert_refused(path, "missing fc.bias", "fc.weight is no array of numbers")


@pytest.mark.parametrize("suffix", [".h5", ".txt", ".onnx", ".jpg"])
def test_other_kinds_of_files(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(b"\x89HDF\r\n\x1a\n" * 100)
    assert_refused(path, "not a file of torch.save")


def test_torch_files_of_any_suffix(tmp_path):
    torch = pytest.importorskip("torch")
    for suffix in (".th", ".pt", ".bin", ".tar", ""):
        net = torch_network("allconv_mnist")
        path = write("zip.pth", tmp_path / f"weights{suffix}", net, "allconv_mnist")
        _, variables = load_pretrained("allconv_mnist", path)
        assert_identical(variables, from_torch("allconv_mnist", net.state_dict()))
    assert torch.load(path, weights_only=True).keys() == net.state_dict().keys()


# What `open_weights` takes.


@pytest.fixture
def published(tmp_path, monkeypatch):
    """Two versions of tiny_bn's weights, where torch would have put them."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    directory = tmp_path / "torch" / "hub" / "checkpoints"
    directory.mkdir(parents=True)
    rows = {}
    for seed, version in enumerate(("V2", "V1")):
        path = write_npz(tmp_path / "part", random_state(seed))
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        file = f"tiny-{sha256[:8]}.npz"
        path.rename(directory / file)
        rows[version] = Weights(
            "tiny_bn", version, file, 0.5, None, resize=9 + seed, crop=8,
            preprocess="inception", data="cifar10",
        )  # fmt: skip
    monkeypatch.setattr(catalog, "CATALOG", (*rows.values(), *catalog.CATALOG))
    return rows, directory


def test_names_and_versions(published):
    for spec, seed in (("tiny_bn", 0), ("tiny_bn:V2", 0), ("tiny_bn:V1", 1)):
        model, variables = load_pretrained(spec)
        assert model.num_classes == 10
        assert_identical(variables, from_torch("tiny_bn", random_state(seed)))
    assert "there are: V2, V1" in refusal(load_pretrained, "tiny_bn:V3")
    message = refusal(load_pretrained, "tiny_bn:V1", "a.pth")
    assert message == "version 'V1' is of published weights, a.pth is a file; leave one"


def test_what_the_catalogue_knows(published, tmp_path):
    rows, directory = published
    copied = tmp_path / rows["V1"].file  # known by its name wherever it is
    copied.write_bytes((directory / rows["V1"].file).read_bytes())
    for source in ("tiny_bn:V1", str(copied), copied):
        net = load_classifier(source)
        assert net.name == "tiny_bn"
        assert net.classes == catalog.CIFAR10
        assert (net.image_shape, net.resize) == ((8, 8, 3), 10)
        assert net.preprocess.kind == "inception"
    assert load_classifier("tiny_bn").resize == 9
    message = refusal(load_pretrained, "nin", copied)
    assert message == f"{copied} has weights of tiny_bn, not of nin; load tiny_bn"


def test_published_features_get_a_fresh_classifier(published, monkeypatch):
    """As vgg16:FEATURES, where torchvision's classifier is all NaN."""
    rows, directory = published
    state = random_state(0)
    head = {key: x * np.nan for key, x in state.items() if key.startswith("fc")}
    assert head
    path = write_npz(directory / "part", {**state, **head})
    file = f"tiny-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}.npz"
    path.rename(directory / file)
    row = dataclasses.replace(rows["V1"], version="FEATURES", file=file, top1=None)
    monkeypatch.setattr(catalog, "CATALOG", (*rows.values(), row))
    for count in (None, 3):
        model, variables = load_pretrained("tiny_bn:FEATURES", num_classes=count)
        params, expected = variables["params"], from_torch("tiny_bn", state)["params"]
        assert set(params) - {"fc"} == set(expected) - {"fc"}
        for name in set(params) - {"fc"}:
            jax.tree.map(np.testing.assert_array_equal, params[name], expected[name])
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(params["fc"]))
        assert params["fc"]["bias"].shape == (count or model.num_classes,)
    assert "has no classifier; train one" in refusal(
        load_classifier, "tiny_bn:FEATURES"
    )


def test_more_classes_than_there_is_memory_for(tmp_path, state):
    """A message, not an array of that size."""
    facts = model_facts("tiny_bn", {"num_classes": 10**12}, (), (8, 8, 3), 8, "unit")
    path = tmp_path / "a.safetensors"
    save_model(path, from_torch("tiny_bn", state), facts, {})
    assert "1000000000000" in refusal(load_pretrained, "tiny_bn", path)


def test_a_native_file_knows_better_than_the_catalogue(
    published, tmp_path, monkeypatch, state
):
    rows, _ = published
    native = write_native(tmp_path / "native.safetensors", state)
    row = dataclasses.replace(rows["V1"], file=native.name)
    monkeypatch.setattr(catalog, "CATALOG", (row, *catalog.CATALOG))
    assert load_classifier(native).classes == tuple("abcdefghij")
    assert load_classifier(native).preprocess.kind == "unit"


def test_a_published_file_that_was_changed(published):
    rows, directory = published
    path = directory / rows["V2"].file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    message = refusal(load_pretrained, "tiny_bn")
    assert str(path) in message
    assert f"expected {rows['V2'].sha256}" in message
    assert "delete it" in message


def test_paths(tmp_path, monkeypatch, state):
    expected = from_torch("tiny_bn", state)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "below").mkdir()
    for path in ("~/a.npz", "a.npz", "below/a.npz", "./a.npz"):
        write_npz((tmp_path / path.removeprefix("~/")).resolve(), state)
        _, variables = load_pretrained("tiny_bn", path)
        assert_identical(variables, expected)


def test_a_directory_of_that_name_hides_no_published_weights(
    published, tmp_path, monkeypatch
):
    (tmp_path / "tiny_bn").mkdir()
    monkeypatch.chdir(tmp_path)
    _, variables = load_pretrained("tiny_bn")
    assert_identical(variables, from_torch("tiny_bn", random_state(0)))


@pytest.mark.parametrize(
    "source",
    [
        "no.safetensors", "no.pth", "no.npz", "runs/no", "/no/such/file", "~/no.th",
        "~no_such_user/no.pth", "x" * 300 + ".pth", ".", "./",
    ],
)  # fmt: skip
def test_no_such_file(source):
    if source not in (".", "./"):
        assert refusal(open_weights, source).startswith("no file ")
    message = refusal(load_pretrained, "tiny_bn", source)
    assert message.startswith(("no file ", "unknown model with published weights"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("vgg61", "unknown model with published weights 'vgg61'; did you mean vgg19"),
        ("nin", "model nin: no weights are published; give a path of your own"),
        ("resnet50:V7", "unknown version 'V7' of resnet50's weights"),
        ("x" * 300, "unknown model with published weights"),
        ("", "unknown model with published weights ''"),
    ],
)
def test_no_such_name(source, message):
    assert message in refusal(open_weights, source)
    assert message in refusal(load_classifier, source)


def test_an_unknown_model_of_a_file(tmp_path, state):
    path = write_npz(tmp_path / "a.npz", state)
    message = refusal(load_pretrained, "tiny_bm", path)
    assert message.startswith("unknown model 'tiny_bm'; did you mean tiny_bn")


def test_offline_it_says_at_once_which_file_to_put_where(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for variable in ("https_proxy", "http_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    started = time.monotonic()
    message = refusal(load_pretrained, "vgg16")
    assert time.monotonic() - started < 10
    directory = tmp_path / "cache" / "flaxcnn" / "weights"
    assert f"put vgg16-397923af.pth into {directory} by hand" in message
    assert "download.pytorch.org/models/vgg16-397923af.pth" in message


def test_a_file_put_there_by_hand(published, tmp_path, monkeypatch):
    rows, directory = published
    ours = tmp_path / "cache" / "flaxcnn" / "weights"
    ours.mkdir(parents=True)
    (directory / rows["V2"].file).rename(ours / rows["V2"].file)
    file = open_weights("tiny_bn")
    assert file.path == ours / rows["V2"].file
    np.testing.assert_array_equal(file.state_dict["fc.bias"], random_state()["fc.bias"])
