"""Files that torchvision and timm write: loaded, they give the same logits."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

import flaxcnn
from flaxcnn import cli
from flaxcnn.weights.pretrained import load_pretrained
from tests.parity.reference import (
    TOLERANCE,
    channels_first,
    images,
    randomize,
    relative,
)


def of_torchvision(name, **fields):
    torch.manual_seed(0)
    return randomize(getattr(torchvision.models, name)(**fields)).eval()


def of_timm(name, **fields):
    torch.manual_seed(0)
    return randomize(timm.create_model(name, **fields)).eval()


def assert_same_logits(model, variables, net, size):
    x = images(size, size)
    with torch.no_grad():
        expected = net(channels_first(x))
    apply = jax.jit(functools.partial(model.apply, train=False))
    assert relative(apply(variables, jnp.asarray(x)), expected) < TOLERANCE


@pytest.mark.parametrize(
    ("name", "zipped"),
    [
        ("squeezenet1_1", False),
        pytest.param("resnet18", False, marks=pytest.mark.long),
        pytest.param("resnet18", True, marks=pytest.mark.long),
    ],
)
def test_saved_by_torchvision_itself(tmp_path, name, zipped):
    net = of_torchvision(name, num_classes=1000 if zipped else 12)
    path = tmp_path / "a.pth"
    torch.save(net.state_dict(), path, _use_new_zipfile_serialization=zipped)
    model, variables = load_pretrained(name, path)
    assert model.num_classes == (1000 if zipped else 12)
    assert_same_logits(model, variables, net, 96)


@pytest.mark.long
def test_our_files_load_into_torchvision(tmp_path):
    """Strictly, and its logits stay the same."""
    name = "squeezenet1_1"
    net = of_torchvision(name, num_classes=5)
    torch.save(net.state_dict(), tmp_path / "a.pth")
    for file, out in (("a.pth", "b.safetensors"), ("b.safetensors", "c.pth")):
        cli.main(["convert", str(tmp_path / file), str(tmp_path / out),
                  f"--model={name}"])  # fmt: skip
    other = torchvision.models.squeezenet1_1(num_classes=5).eval()
    other.load_state_dict(torch.load(tmp_path / "c.pth", weights_only=True))
    x = channels_first(images(96, 96))
    with torch.no_grad():
        torch.testing.assert_close(other(x), net(x), rtol=0, atol=0)


@pytest.mark.long
def test_batch_norms_of_our_files_load_into_torchvision(tmp_path):
    """Without num_batches_tracked, which we do not keep."""
    net = of_torchvision("shufflenet_v2_x0_5", num_classes=5)
    torch.save(net.state_dict(), tmp_path / "a.pth")
    cli.main(["convert", str(tmp_path / "a.pth"), str(tmp_path / "b.pth"),
              "--model=shufflenet_v2_x0_5"])  # fmt: skip
    other = torchvision.models.shufflenet_v2_x0_5(num_classes=5).eval()
    other.load_state_dict(torch.load(tmp_path / "b.pth", weights_only=True))
    x = channels_first(images(96, 96))
    with torch.no_grad():
        torch.testing.assert_close(other(x), net(x), rtol=0, atol=0)


@pytest.mark.long
def test_googlenet_with_auxiliary_heads(tmp_path):
    """As its published file: they are in it, and are left out unless asked for."""
    net = of_torchvision("googlenet", init_weights=False, aux_logits=True)
    path = tmp_path / "googlenet.pth"
    torch.save(net.state_dict(), path)
    model, variables = load_pretrained("googlenet", path)
    assert not {"aux1", "aux2"} & variables["params"].keys()
    assert_same_logits(model, variables, net, 96)
    model, variables = load_pretrained("googlenet", path, aux_logits=True)
    assert {"aux1", "aux2"} <= variables["params"].keys()
    weight = net.aux1.fc2.weight.detach().numpy()
    kernel = variables["params"]["aux1"]["fc2"]["kernel"]
    np.testing.assert_array_equal(kernel, weight.T)
    model, variables = load_pretrained("googlenet", path, num_classes=3)
    assert variables["params"]["fc"]["kernel"].shape == (1024, 3)


@pytest.mark.long
def test_inception_v3_with_its_auxiliary_head(tmp_path):
    net = of_torchvision("inception_v3", init_weights=False, aux_logits=True)
    torch.save(net.state_dict(), tmp_path / "a.pth")
    model, variables = load_pretrained("inception_v3", tmp_path / "a.pth")
    assert "AuxLogits" not in variables["params"]
    assert_same_logits(model, variables, net, 140)
    _, variables = load_pretrained(
        "inception_v3", tmp_path / "a.pth", num_classes=3, aux_logits=True
    )
    assert variables["params"]["AuxLogits"]["fc"]["kernel"].shape == (768, 3)
    conv1 = net.AuxLogits.conv1.conv.weight.detach().numpy()
    kernel = variables["params"]["AuxLogits"]["conv1"]["conv"]["kernel"]
    np.testing.assert_array_equal(kernel, conv1.transpose(2, 3, 1, 0))


@pytest.mark.long
def test_densenet_with_the_keys_of_its_published_file(tmp_path):
    net = of_torchvision("densenet121")
    old = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", key): array
        for key, array in net.state_dict().items()
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, tmp_path / "densenet.pth")
    model, variables = load_pretrained("densenet121", tmp_path / "densenet.pth")
    assert_same_logits(model, variables, net, 64)


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "size", "dtype"),
    [
        ("resnet18", 96, torch.float32), ("resnet18", 96, torch.float16),
        ("resnet18", 96, torch.bfloat16), ("inception_v4", 140, torch.float32),
        ("inception_resnet_v2", 140, torch.float32),
    ],
)  # fmt: skip
def test_safetensors_of_timm(tmp_path, name, size, dtype):
    """As Hugging Face has them."""
    net = of_timm(name).to(dtype)
    path = tmp_path / "model.safetensors"
    save_file(net.state_dict(), path, {"format": "pt"})
    model, variables = load_pretrained(name, path)
    assert model.num_classes == 1000
    assert_same_logits(model, variables, net.float(), size)


@pytest.mark.long
def test_features_are_those_of_timm(tmp_path):
    net = of_timm("resnet18")
    save_file(net.state_dict(), tmp_path / "model.safetensors")
    model, variables = load_pretrained(
        "resnet18", tmp_path / "model.safetensors", num_classes=0
    )
    net.reset_classifier(0)
    assert_same_logits(model, variables, net, 96)


@pytest.mark.long
def test_a_file_of_another_network(tmp_path):
    torch.save(of_torchvision("resnet18").state_dict(), tmp_path / "a.pth")
    with pytest.raises(flaxcnn.FlaxcnnError) as error:
        load_pretrained("resnet34", tmp_path / "a.pth")
    message = str(error.value)
    assert message.startswith(f"{tmp_path / 'a.pth'} is not resnet34's: missing ")
    assert "missing layer1.2.conv1.weight" in message
    assert "unexpected" not in message
    assert "\n" not in message
