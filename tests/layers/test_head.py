"""The classifier against a Dense layer written out."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from flaxcnn.layers.head import classify


class Head(nn.Module):
    num_classes: int
    kernel_init: nn.initializers.Initializer | None = None

    @nn.compact
    def __call__(self, x, *, train):
        return classify(x, self.num_classes, "fc", train=train, dropout=0.5,
                        kernel_init=self.kernel_init)  # fmt: skip


x = jax.random.normal(jax.random.key(0), (64, 400), jnp.bfloat16)


def test_logits_are_a_dense_layers_in_float32():
    variables = Head(10).init(jax.random.key(1), x, train=False)
    params = variables["params"]["fc"]
    logits = Head(10).apply(variables, x, train=False)
    assert logits.dtype == jnp.float32
    expected = np.asarray(x, np.float64) @ np.float64(params["kernel"]) + params["bias"]
    np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_weights_are_torchs_unless_given():
    params = Head(10).init(jax.random.key(1), x, train=False)["params"]["fc"]
    for leaf in params.values():  # U(-1/20, 1/20)
        assert 0.04 < np.abs(leaf).max() <= 0.05
    ones = Head(10, nn.initializers.ones).init(jax.random.key(1), x, train=False)
    assert (ones["params"]["fc"]["kernel"] == 1).all()
    assert (ones["params"]["fc"]["bias"] == 0).all()


def test_features_come_without_dropout():
    features, variables = Head(0).init_with_output(jax.random.key(1), x, train=True)
    assert features.dtype == jnp.float32
    np.testing.assert_array_equal(features, x.astype(jnp.float32))
    assert not variables


def test_dropout_precedes_the_logits():
    variables = Head(10).init(jax.random.key(1), x, train=False)
    first, again, other = (
        Head(10).apply(variables, x, train=True, rngs={"dropout": jax.random.key(i)})
        for i in (2, 2, 3)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
