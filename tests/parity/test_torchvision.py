"""Every network that torchvision has, against torchvision, with random weights."""

import numpy as np
import pytest
import torch
import torchvision

import flaxcnn
import flaxcnn.weights
from flaxcnn.data import preprocess
from tests.models.documented import documented
from tests.parity.reference import (
    channels_first,
    compare_evaluation,
    compare_gradients,
    compare_training,
    images,
    randomize,
    relative,
)


def pools(*indices):
    return {f"block{i}": f"features.{n}" for i, n in enumerate(indices, start=1)}


# torchvision's modules whose outputs are endpoints of another name.
MODULES = {
    "alexnet": pools(2, 5, 12),
    "squeezenet1_0": {"stem": "features.1", **pools(5, 10, 12)},
    "squeezenet1_1": {"stem": "features.1", **pools(4, 7, 12)},
    "vgg11": pools(2, 5, 10, 15, 20),
    "vgg11_bn": pools(3, 7, 14, 21, 28),
    "vgg13": pools(4, 9, 14, 19, 24),
    "vgg13_bn": pools(6, 13, 20, 27, 34),
    "vgg16": pools(4, 9, 16, 23, 30),
    "vgg16_bn": pools(6, 13, 23, 33, 43),
    "vgg19": pools(4, 9, 18, 27, 36),
    "vgg19_bn": pools(6, 13, 26, 39, 52),
    "mobilenet_v2": {**pools(1, 3, 6, 10, 13, 16, 17), "conv_head": "features.18"},
}
STEM = {"stem": "maxpool"}
DENSENET = {f"denseblock{i}": f"features.denseblock{i}" for i in range(1, 5)}
MNASNET = {f"block{i}": f"layers.{i + 6}" for i in range(1, 8)}
for pattern, modules in {
    "*resne*t*": STEM,
    "shufflenet*": STEM,
    "densenet*": {"stem": "features.pool0", **DENSENET},
    "mnasnet*": {**MNASNET, "conv_head": "layers.16"},
}.items():
    MODULES |= dict.fromkeys(flaxcnn.list_models(pattern), modules)
NAMES = [
    name
    for name in flaxcnn.list_models()
    if any(w.data == "imagenet" for w in flaxcnn.model_info(name).weights)
]
FIRST = ("resnet18", "squeezenet1_1", "shufflenet_v2_x0_5")  # the others: long tier
EACH = pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n in FIRST else pytest.mark.long) for n in NAMES],
)


def build(name, bias=0.0, aux_logits=False):
    torch.manual_seed(0)
    fields = {}
    if name in ("googlenet", "inception_v3"):
        fields = {"init_weights": False, "aux_logits": aux_logits}
    return randomize(getattr(torchvision.models, name)(**fields), bias)


def test_all_36():
    assert len(NAMES) == 36


@EACH
def test_evaluation(name):
    """Logits and every stage, at the standard size and at an odd one."""
    net = build(name)
    size = flaxcnn.model_info(name).input_size[0]
    for shape in ((size, size), (230, 197)):
        compare_evaluation(name, net, images(*shape), MODULES.get(name))


@EACH
def test_training(name):
    """Batch statistics normalise and update the running ones as torch's do."""
    size = max(64, documented(name)[2])
    compare_training(name, build(name, bias=1.0), images(size, size + 10, batch=4))


@pytest.mark.long
@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_auxiliary_heads(name):
    net = build(name, bias=1.0, aux_logits=True)
    size = flaxcnn.model_info(name).input_size[0]
    compare_training(name, net, images(size, size, batch=4), aux_logits=True)


@pytest.mark.parametrize(
    ("name", "train"),
    [
        ("squeezenet1_1", False),
        *(
            pytest.param(name, train, marks=pytest.mark.long)
            for name, train in [
                ("alexnet", True), ("densenet121", False), ("googlenet", False),
                ("inception_v3", False), ("mnasnet0_5", True), ("mobilenet_v2", True),
                ("resnet18", True), ("resnet50", False), ("resnext50_32x4d", False),
                ("shufflenet_v2_x0_5", True), ("vgg11", False), ("vgg11_bn", True),
                ("wide_resnet50_2", False),
            ]
        ),
    ],
)  # fmt: skip
def test_gradients(name, train):
    size = max(64, documented(name)[2])
    compare_gradients(name, build(name), images(size, size, batch=2), train)


@pytest.mark.long
def test_gradients_with_auxiliary_heads():
    net = build("googlenet", aux_logits=True)
    compare_gradients("googlenet", net, images(64, 64, 2), True, aux_logits=True)


@EACH
def test_published_numbers(name):
    """torchvision's parameters and multiply-adds."""
    info = flaxcnn.model_info(name)
    meta = torchvision.models.get_model_weights(name).DEFAULT.meta
    aux = 27_161_264 - 23_834_568 if name == "inception_v3" else 0
    assert meta["num_params"] == info.params + aux
    assert meta["_ops"] == pytest.approx(info.macs / 1e9, abs=1e-3)


@pytest.mark.long
@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_transform_input(name):
    """Inside torchvision's network, preprocessing here: the same logits."""
    net = build(name).eval()
    net.transform_input = True
    size = flaxcnn.model_info(name).input_size[0]
    pixels = np.random.default_rng(0).integers(0, 256, (1, size, size, 3), np.uint8)
    assert flaxcnn.model_info(name).weights[0].preprocess == "inception"
    theirs, ours = (
        preprocess.apply(kind, preprocess.fit(kind, pixels).arrays, pixels)
        for kind in ("imagenet", "inception")
    )
    with torch.no_grad():
        expected = net(channels_first(theirs))
    variables = flaxcnn.weights.from_torch(name, net.state_dict())
    logits = flaxcnn.create_model(name).apply(variables, ours, train=False)
    assert relative(logits, expected) < 1e-4


@EACH
def test_round_trip_is_bit_identical(name):
    state = build(name).state_dict()
    back = flaxcnn.weights.to_torch(name, flaxcnn.weights.from_torch(name, state))
    assert back.keys() == {k for k in state if not k.endswith("num_batches_tracked")}
    for key, array in back.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, state[key].numpy(), key)
