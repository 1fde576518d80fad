"""The channel shuffle and the split."""

import jax
import jax.numpy as jnp
import numpy as np

from flaxcnn.models.shufflenet_v2 import ShuffleBlock, channel_shuffle


def test_channel_shuffle_by_hand():
    x = jnp.arange(6.0).reshape(1, 1, 1, 6)
    assert channel_shuffle(x, 2).ravel().tolist() == [0, 3, 1, 4, 2, 5]
    assert channel_shuffle(x, 3).ravel().tolist() == [0, 2, 4, 1, 3, 5]
    np.testing.assert_array_equal(channel_shuffle(channel_shuffle(x, 2), 3), x)


def test_half_of_the_channels_passes_a_block_unchanged():
    """It comes out as the even channels, whatever the weights are."""
    x = jax.random.normal(jax.random.key(0), (2, 5, 6, 8))
    block = ShuffleBlock(8, 1)
    y, variables = block.init_with_output(jax.random.key(1), x, train=False)
    np.testing.assert_array_equal(y[..., ::2], x[..., :4])
    assert (y[..., 1::2] >= 0).all()
    assert not any(name.startswith("branch1") for name in variables["params"])
