"""The catalogue of published weights; tests/parity has torchvision's own metadata."""

import hashlib
import subprocess
import sys

import pytest

import flaxcnn
from flaxcnn.errors import FlaxcnnError
from flaxcnn.weights.catalog import CATALOG, weights_named, weights_of, weights_of_file
from tests.paths import REAL_DATA, ROOT

CIFAR = [weights for weights in CATALOG if weights.data == "cifar10"]


def test_51_rows_of_registered_models():
    assert len(CATALOG) == 51
    assert len({weights.file for weights in CATALOG}) == 51
    assert len({(weights.model, weights.version) for weights in CATALOG}) == 51
    assert {weights.model for weights in CATALOG} <= set(flaxcnn.list_models())
    for weights in CATALOG:
        assert len(weights.sha256) in (8, 10)
        assert set(weights.sha256) <= set("0123456789abcdef")


def test_the_rows_of_cifar10():
    assert len(CIFAR) == 6
    for weights in CIFAR:
        assert weights.model.removesuffix("_cifar") == weights.file.split("-")[0]
        assert weights.url == (
            "https://github.com/akamaster/pytorch_resnet_cifar10/raw/master/"
            f"pretrained_models/{weights.file}"
        )
        assert (weights.resize, weights.crop, weights.top5) == (32, 32, None)
        assert weights.classes[0] == "airplane"
        assert weights.classes[9] == "truck"
        assert len(weights.classes) == 10
    accuracies = [weights.top1 for weights in CIFAR]
    assert accuracies == [0.9173, 0.9263, 0.9310, 0.9339, 0.9368, 0.9382]


def test_the_classes_of_imagenet():
    classes = weights_named("resnet50").classes
    assert len(set(classes)) == 1000
    assert (classes[0], classes[207], classes[999]) == (
        "tench", "golden retriever", "toilet tissue",
    )  # fmt: skip


def test_the_sha256_of_a_published_file():
    weights = weights_named("resnet20_cifar")
    file = REAL_DATA / "weights" / weights.file
    if not file.exists():
        pytest.skip(f"no {weights.file} here")
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    assert sha256.startswith(weights.sha256)


def test_specs():
    assert weights_named("resnet50") == weights_of("resnet50")[0]
    assert weights_named("resnet50:V2").file == "resnet50-11ad3fa6.pth"
    assert weights_named("resnet50:V1").file == "resnet50-0676ba61.pth"
    assert weights_named("resnet20_cifar:AKAMASTER").file == "resnet20-12fca82f.th"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnet51", "unknown model with published weights 'resnet51'; did you mean"),
        ("", "unknown model with published weights ''; known: "),
        ("nin", "model nin: no weights are published; give a path of your own"),
        ("nin:V1", "model nin: no weights are published; give a path of your own"),
        (
            "resnet50:V3",
            "unknown version 'V3' of resnet50's weights; there are: V2, V1",
        ),
        ("resnet50:", "unknown version '' of resnet50's weights; there are: V2, V1"),
    ],
)
def test_mistakes_in_specs(spec, message):
    with pytest.raises(FlaxcnnError) as caught:
        weights_named(spec)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_file_is_known_by_its_name(tmp_path):
    v1 = weights_named("resnet50:V1")
    assert weights_of_file("resnet50-0676ba61.pth") == v1
    assert weights_of_file(tmp_path / "resnet50-0676ba61.pth") == v1
    assert weights_of_file("resnet50.pth") is None


def test_the_catalogue_is_cheap_to_import():
    code = (
        "import sys, flaxcnn.weights.catalog as catalog;"
        "catalog.weights_named('resnet50').url;"
        "assert not {'jax', 'numpy', 'urllib.request'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
