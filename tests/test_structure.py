"""What tracing finds in a network: its head, its calls in order, unique keys."""

import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict

import flaxcnn
from flaxcnn.layers import BatchNorm, Conv, Dropout, MapDense
from flaxcnn.structure import (
    head_parameters,
    module_calls,
    parameter_shapes,
    variable_shapes,
)
from flaxcnn.weights.torch import torch_key

NAMES = [name for name in flaxcnn.list_models() if name != "tiny_bn"]

# The quickest; all the others take more than a minute together.
FIRST = {
    "allcnn_c", "allconv_mnist", "nin", "resblocks_identity", "resnet18",
    "shufflenet_v2_x0_5", "squeezenet1_1", "vgg16_bn",
}  # fmt: skip
EVERY = pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n in FIRST else pytest.mark.long) for n in NAMES],
)


def build(name, **fields):
    return flaxcnn.create_model(name, **fields), flaxcnn.model_info(name).input_size


@EVERY
def test_the_head_is_what_a_model_without_classes_lacks(name):
    model, shape = build(name)
    whole = parameter_shapes(model, shape)
    trunk = parameter_shapes(model.clone(num_classes=0), shape)
    head = head_parameters(model, shape)
    assert sorted(head) == sorted(set(whole) - set(trunk))
    assert {path: whole[path] for path in trunk} == trunk
    assert head, "no head"
    assert all(model.num_classes in whole[path] for path in head)


@pytest.mark.parametrize("classes", [0, 1, 2, 7])
def test_the_head_does_not_depend_on_the_number_of_classes(classes):
    model, shape = build("nin")
    clone = model.clone(num_classes=classes)
    assert head_parameters(clone, shape) == head_parameters(model, shape)


@pytest.mark.parametrize(
    ("name", "auxiliary", "own"),
    [
        ("googlenet", ("aux1/fc2", "aux2/fc2"), "fc"),
        pytest.param(
            "googlenet_paper", ("aux1/fc2", "aux2/fc2"), "fc", marks=pytest.mark.long
        ),
        pytest.param("inception_v3", ("AuxLogits/fc",), "fc", marks=pytest.mark.long),
        pytest.param(
            "inception_v4", ("AuxLogits/fc",), "last_linear", marks=pytest.mark.long
        ),
    ],
)
def test_auxiliary_classifiers_are_heads_too(name, auxiliary, own):
    model, shape = build(name, aux_logits=True)
    layers = (*auxiliary, own)
    expected = {f"{layer}/{leaf}" for layer in layers for leaf in ("kernel", "bias")}
    assert set(head_parameters(model, shape)) == expected


def test_calls_of_a_residual_network_are_in_the_order_of_the_computation():
    model = flaxcnn.create_model("resblocks_resized")
    calls = module_calls(model, (8, 8, 1))
    block = ["conv1", "bn1", "conv2", "bn2", "conv_shortcut", "bn_shortcut"]
    expected = [f"block{i}/{name}" for i in (1, 2) for name in block]
    assert [call.path for call in calls if call.params] == [*expected, "fc"]
    kinds = {call.path: call.kind for call in calls}
    assert kinds["block1/conv1"] is Conv
    assert kinds["block1/bn1"] is BatchNorm
    assert kinds["fc"] is MapDense
    layers = {call.path for call in calls if call.is_layer}
    assert layers == {path for path in (*expected, "fc") if "bn" not in path}


def test_calls_of_vgg_with_its_dropouts():
    calls = module_calls(flaxcnn.create_model("vgg11"), (32, 32, 3))
    found = [
        "dropout" if call.kind is Dropout else call.path
        for call in calls
        if call.params or call.kind is Dropout
    ]
    convolutions = [f"features.{i}" for i in (0, 3, 6, 8, 11, 13, 16, 18)]
    assert found == [
        *convolutions, "classifier.0", "dropout", "classifier.3", "dropout",
        "classifier.6",
    ]  # fmt: skip


def test_a_module_that_is_called_twice_stands_where_it_was_first():
    class Twice(nn.Module):
        num_classes: int = 3

        @nn.compact
        def __call__(self, x, *, train):
            shared = nn.Dense(4, name="shared")
            x = shared(x.mean((1, 2)))
            x = nn.Dense(4, name="between")(x)
            return nn.Dense(self.num_classes, name="fc")(shared(x))

    calls = module_calls(Twice(), (2, 2, 4))
    assert [call.path for call in calls] == ["", "shared", "between", "fc"]


@EVERY
def test_every_parameter_belongs_to_one_call(name):
    model, shape = build(name)
    paths = [path for call in module_calls(model, shape) for path in call.params]
    assert sorted(paths) == sorted(parameter_shapes(model, shape))


@EVERY
def test_torch_keys_are_unique(name):
    model, shape = build(name)
    paths = list(flatten_dict(variable_shapes(model, shape)))
    keys = {torch_key(path) for path in paths}
    assert len(keys) == len(paths)
