"""The All-CNNs leave the plateau at ln(10), at which their training begins."""

import math
from functools import partial

import jax
import numpy as np
import pytest

import flaxcnn
from flaxcnn.train.config import load_config
from flaxcnn.train.loop import fit
from tests.paths import ROOT


@pytest.mark.parametrize("name", ["cnn_a", "cnn_b", "cnn_c"])
def test_fresh_class_maps_are_nearly_equal(name):
    """The loss, averaged over all labels, whose minimum is ln(10).

    Max-pooling amplifies twice: with He's weights it is 4.5 to 7.
    """
    model = flaxcnn.create_model(name)
    x = jax.random.normal(jax.random.key(0), (8, 12, 12, 3))
    variables = model.lazy_init(jax.random.key(1), x, train=False)
    logits = jax.jit(partial(model.apply, train=False))(variables, x)
    loss = -jax.nn.log_softmax(logits).mean()
    assert loss == pytest.approx(math.log(10), abs=0.4)


def test_spatial_dropout_keeps_or_drops_whole_maps():
    model = flaxcnn.create_model("strided_cnn_a", input_dropout=0.0, spatial=True)
    x = jax.random.uniform(jax.random.key(0), (2, 16, 16, 3))
    variables = model.lazy_init(jax.random.key(0), x, train=False)
    _, ends = model.apply(variables, x, train=False, endpoints=True)
    _, state = model.apply(
        variables, x, train=True, rngs={"dropout": jax.random.key(1)},
        capture_intermediates=True, mutable="intermediates",
    )  # fmt: skip
    (after,) = state["intermediates"]["SpatialDropout_0"]["__call__"]
    before = np.asarray(ends["block1"])
    kept = np.asarray(after).any((1, 2), keepdims=True)
    np.testing.assert_array_equal(after, 2 * before * kept)
    assert 0.2 < kept.mean() < before.any((1, 2)).mean() - 0.2


@pytest.mark.long
@pytest.mark.parametrize("name", ["cnn_a", "cnn_b", "cnn_c", "convpool_cnn_a"])
def test_the_recipe_does_not_kill_max_pooled_units(name, tmp_path):
    """The paper's SGD on small images: a network of dead units stays at 10 %."""
    overrides = {
        "model.name": name, "data.name": "digits", "data.image_size": "12",
        "data.preprocess": "standardize", "batch_size": "32", "steps": "135",
    }  # fmt: skip
    config = load_config(f"{ROOT}/configs/allcnn_c.py", overrides)
    assert fit(config, tmp_path)["accuracy"] > 0.5
