"""What only MnasNet has."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxcnn
from flaxcnn.models.mnasnet import InvertedResidual


@pytest.mark.long
def test_statistics_move_by_3_in_10000():
    x = jax.random.normal(jax.random.key(0), (2, 5, 6, 4))
    block = InvertedResidual(4, kernel=3, stride=1, expansion=2)
    variables = block.init(jax.random.key(1), x, train=False)
    y = x @ variables["params"]["layers.0"]["kernel"][0, 0]
    _, updates = block.apply(variables, x, train=True, mutable=["batch_stats"])
    after = updates["batch_stats"]["layers.1"]
    np.testing.assert_allclose(after["mean"], 3e-4 * y.mean((0, 1, 2)), rtol=1e-3)
    moved = 3e-4 * (y.var((0, 1, 2), ddof=1) - 1)
    np.testing.assert_allclose(after["var"] - 1, moved, atol=1e-6)


def test_the_classifier_starts_as_in_torchvision():
    """Uniform, bounded by its outputs, not by its inputs: sqrt(3 / 50)."""
    model = flaxcnn.create_model("mnasnet0_5", num_classes=50)

    @jax.jit
    def classifier():
        variables = model.init(jax.random.key(0), jnp.zeros((1, 1, 1, 3)), train=False)
        return variables["params"]["classifier.1"]  # all else is not even compiled

    kernel, bias = classifier()["kernel"], classifier()["bias"]
    assert 0.999 < np.abs(kernel).max() / np.sqrt(3 / 50) <= 1
    np.testing.assert_allclose(kernel.var(), 1 / 50, rtol=0.02)
    assert (bias == 0).all()
