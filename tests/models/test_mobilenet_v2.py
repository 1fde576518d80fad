"""Width multipliers and linear bottlenecks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxcnn
from flaxcnn.errors import FlaxcnnError
from flaxcnn.models.mobilenet_v2 import InvertedResidual, scaled


@pytest.mark.parametrize(
    ("channels", "multiplier", "width"),
    [
        (32, 1.0, 32), (16, 0.1, 8), (24, 0.5, 16), (83, 1.0, 80), (84, 1.0, 88),
        (24, 0.75, 24), (96, 1.3, 128), (40, 0.35, 16),
    ],
)  # fmt: skip
def test_scaled_by_hand(channels, multiplier, width):
    assert scaled(channels, multiplier) == width


def test_scaled_is_the_nearest_multiple_of_8_that_keeps_9_in_10():
    for channels in range(8, 400):
        for multiplier in (0.35, 0.5, 0.75, 1.0, 1.3, 1.4):
            width = channels * multiplier
            allowed = [m for m in range(8, 640, 8) if m >= 0.9 * width]
            # Of two that are as near, the larger.
            best = min(allowed, key=lambda m: (abs(m - width), -m))
            assert scaled(channels, multiplier) == best, (channels, multiplier)


def test_width_multiplier():
    """Counts of torchvision's classes; only above 1 it is the last width's too."""
    for multiplier, params, last in ((0.35, 1_677_128, 1280), (1.4, 6_108_776, 1792)):
        model = flaxcnn.create_model("mobilenet_v2", width_multiplier=multiplier)
        x = jnp.zeros((1, 32, 32, 3))
        variables = jax.eval_shape(
            lambda model=model, x=x: model.init(jax.random.key(0), x, train=False)
        )
        assert sum(p.size for p in jax.tree.leaves(variables["params"])) == params
        assert variables["params"]["classifier.1"]["kernel"].shape == (last, 1000)
    model = flaxcnn.create_model("mobilenet_v2", width_multiplier=0.0)
    with pytest.raises(FlaxcnnError, match="is not positive"):
        model.init(jax.random.key(0), x, train=False)


def test_the_narrow_ends_are_linear():
    """With its last scale at 0 a block adds its last bias, a negative one too."""
    x = jax.random.normal(jax.random.key(0), (2, 5, 6, 8))
    block = InvertedResidual(8, 1, 6)
    variables = block.init(jax.random.key(1), x, train=False)
    norm = {"scale": jnp.zeros(8), "bias": jnp.full(8, -2.0)}
    variables = {**variables, "params": {**variables["params"], "conv.3": norm}}
    np.testing.assert_allclose(block.apply(variables, x, train=False), x - 2, atol=1e-6)


def test_no_shortcut_across_a_stride():
    """Not even where the shape stays: one pixel is one pixel after a stride of 2."""
    x = jnp.ones((1, 1, 1, 8))
    block = InvertedResidual(8, 2, 6)
    variables = block.init(jax.random.key(1), x, train=False)
    norm = {"scale": jnp.zeros(8), "bias": jnp.zeros(8)}
    variables = {**variables, "params": {**variables["params"], "conv.3": norm}}
    assert (block.apply(variables, x, train=False) == 0).all()
