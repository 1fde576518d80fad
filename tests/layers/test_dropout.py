"""Dropout: masks, scale and the identity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxcnn.errors import FlaxcnnError
from flaxcnn.layers import Dropout, SpatialDropout

X = jnp.asarray(np.random.default_rng(0).uniform(1, 2, (64, 3, 5, 32)), jnp.float32)


def drop(layer, x=X, seed=0):
    return layer.apply({}, x, train=True, rngs={"dropout": jax.random.key(seed)})


@pytest.mark.parametrize("rate", [0.2, 0.5])
def test_spatial_mask_is_per_sample_and_channel(rate):
    ratio = np.asarray(drop(SpatialDropout(rate)) / X)
    maps = ratio[:, :1, :1]
    np.testing.assert_allclose(ratio, np.broadcast_to(maps, X.shape), rtol=1e-6)
    kept = maps > 0
    np.testing.assert_allclose(maps[kept], 1 / (1 - rate), rtol=1e-6)
    # 2048 draws: 4 standard deviations are at most 0.045.
    assert abs(kept.mean() - (1 - rate)) < 0.045
    assert 0 < kept[0].mean() < 1
    assert 0 < kept[..., 0].mean() < 1


def test_elementwise_mask():
    ratio = np.asarray(drop(Dropout(0.5)) / X)
    assert set(np.unique(ratio.round(4))) == {0.0, 2.0}
    assert abs((ratio > 0).mean() - 0.5) < 0.03
    assert (ratio != ratio[:, :1, :1]).any()


@pytest.mark.parametrize("layer", [Dropout, SpatialDropout])
def test_identity_and_rate_one(layer):
    np.testing.assert_array_equal(layer(0.5).apply({}, X, train=False), X)
    np.testing.assert_array_equal(drop(layer(0.0)), X)
    np.testing.assert_array_equal(drop(layer(1.0)), 0 * X)
    assert drop(layer(0.5), X.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_the_key_decides():
    layer = SpatialDropout(0.5)
    np.testing.assert_array_equal(drop(layer), drop(layer))
    assert (drop(layer) != drop(layer, seed=1)).any()


def test_bad_input_says_the_cure():
    for layer in (Dropout(-0.1), SpatialDropout(1.5)):
        with pytest.raises(FlaxcnnError, match="0 to 1"):
            drop(layer)
    with pytest.raises(FlaxcnnError, match="N, H, W, C"):
        drop(SpatialDropout(0.5), X[0])
