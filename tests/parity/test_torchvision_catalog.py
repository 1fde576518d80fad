"""The catalogue against torchvision's own metadata."""

import pytest
import torchvision

from flaxcnn.data.preprocess import CONSTANTS
from flaxcnn.weights.catalog import CATALOG

ROWS = [weights for weights in CATALOG if weights.data == "imagenet"]


def theirs(weights):
    versions = torchvision.models.get_model_weights(weights.model)
    return versions[f"IMAGENET1K_{weights.version}"]


def test_the_rows_are_all_that_torchvision_has_of_their_models():
    assert len(ROWS) == 45
    for model in {weights.model for weights in ROWS}:
        versions = [weights for weights in ROWS if weights.model == model]
        enum = torchvision.models.get_model_weights(model)
        assert {theirs(weights) for weights in versions} == set(enum)
        assert theirs(versions[0]) == enum.DEFAULT


@pytest.mark.parametrize("weights", ROWS, ids=lambda w: f"{w.model}-{w.version}")
def test_metadata(weights):
    entry = theirs(weights)
    assert weights.url == entry.url
    assert entry.url.removesuffix(".pth").endswith(f"-{weights.sha256}")
    metrics = entry.meta["_metrics"]["ImageNet-1K"]
    if weights.version == "FEATURES":  # no classifier: torchvision has nan, no names
        assert (weights.top1, weights.top5) == (None, None)
    else:
        assert metrics["acc@1"] == pytest.approx(100 * weights.top1, abs=1e-9)
        assert metrics["acc@5"] == pytest.approx(100 * weights.top5, abs=1e-9)
        assert list(weights.classes) == entry.meta["categories"]
    transforms = entry.transforms()
    assert transforms.resize_size == [weights.resize]
    assert transforms.crop_size == [weights.crop]
    if weights.preprocess != "inception":  # see test_torchvision's transform_input
        kind = CONSTANTS[weights.preprocess]
        assert (tuple(transforms.mean), tuple(transforms.std)) == kind
