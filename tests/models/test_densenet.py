"""Dense connectivity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxcnn


@pytest.mark.parametrize("name", ["densenet121", "densenet161"])
def test_a_layer_reads_all_layers_before_it(name):
    """Channels in closed form: c + (l - 1) k into layer l, half of c + L k out."""
    model = flaxcnn.create_model(name)
    x = jnp.zeros((1, 32, 32, 3))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))
    params = shapes["params"]
    k = model.growth_rate
    c = 2 * k
    for block, layers in enumerate(model.blocks, start=1):
        if block > 1:
            kernel = params[f"features.transition{block - 1}.conv"]["kernel"]
            assert kernel.shape == (1, 1, c, c // 2)
            c //= 2
        for layer in range(1, layers + 1):
            weights = params[f"features.denseblock{block}.denselayer{layer}"]
            inputs = c + (layer - 1) * k
            assert weights["conv1"]["kernel"].shape == (1, 1, inputs, 4 * k)
            assert weights["conv2"]["kernel"].shape == (3, 3, 4 * k, k)
        c += layers * k
    assert params["classifier"]["kernel"].shape == (c, 1000)


def block_of(layers, train=False, **fields):
    """(block's input, its output) of a network of one block, freshly initialized."""
    model = flaxcnn.create_model("densenet121", blocks=(layers,), **fields)
    x = jax.random.normal(jax.random.key(0), (2, 64, 64, 3))

    @jax.jit
    def run():
        rngs = {"params": jax.random.key(1), "dropout": jax.random.key(2)}
        (_, ends), _ = model.init_with_output(rngs, x, train=train, endpoints=True)
        return ends["stem"], ends["denseblock1"]

    return run()


@pytest.mark.long
def test_a_block_keeps_its_input_and_every_layer_as_they_are():
    """A block's first channels are its input; one layer more changes none of them."""
    _, two = block_of(2, growth_rate=4)
    stem, three = block_of(3, growth_rate=4)
    assert three.shape == (2, 16, 16, 8 + 3 * 4)
    np.testing.assert_allclose(three[..., :8], stem, atol=1e-6)
    np.testing.assert_allclose(three[..., :16], two, atol=1e-6)
    assert np.abs(three[..., 16:]).max() > 0


@pytest.mark.long
@pytest.mark.parametrize(("train", "rate"), [(True, 0.25), (False, 0)])
def test_dropout_is_in_every_layer(train, rate):
    """Each adds channels with zeros at dropout's rate, in training only."""
    _, y = block_of(2, train, growth_rate=16, dropout=0.25)
    first, second = np.split(np.asarray(y[..., 32:]), 2, -1)
    np.testing.assert_allclose(np.mean(first == 0), rate, atol=0.03)
    np.testing.assert_allclose(np.mean(second == 0), rate, atol=0.03)
