"""The auxiliary head, Inception-ResNet's too, and how the tables are read."""

import jax
import jax.numpy as jnp
import pytest

import flaxcnn
from flaxcnn.errors import FlaxcnnError
from flaxcnn.models.inception_v4 import ConvBN


def init(name="inception_v4", size=299, **fields):
    model = flaxcnn.create_model(name, **fields)
    x = jnp.zeros((2, size, size, 3))
    key = jax.random.key(0)
    return model, x, jax.eval_shape(lambda: model.init(key, x, train=False))


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "count"),
    [("inception_v4", 46_039_280), ("inception_resnet_v2", 59_211_120)],
)
def test_auxiliary_head_is_always_made_and_runs_in_training(name, count):
    model, x, variables = init(name, aux_logits=True)
    assert sum(p.size for p in jax.tree.leaves(variables["params"])) == count
    for train in (False, True):

        def apply(variables, train=train):
            rngs = {"dropout": jax.random.key(0)}
            return model.apply(variables, x, train=train, endpoints=True, rngs=rngs,
                               mutable=["batch_stats"])  # fmt: skip

        (_, ends), _ = jax.eval_shape(apply, variables)
        assert ("aux" in ends) == train
        if train:
            assert (ends["aux"].shape, ends["aux"].dtype) == ((2, 1000), jnp.float32)
    assert set(flaxcnn.model_info(name).aux_weights) == {"aux"}


def test_auxiliary_head_needs_classes():
    with pytest.raises(FlaxcnnError, match=r"num_classes=0 leaves .* aux_logits=False"):
        init(num_classes=0, aux_logits=True)
    init(size=75, aux_logits=True)


@pytest.mark.parametrize(
    ("convolution", "shape"),
    [((8, 1, 7), (9, 11)), ((8, 3, 1), (9, 11)), ((8, 3, 3, 1), (7, 9)),
     ((8, 3, 3, 2), (4, 5))],
)  # fmt: skip
def test_a_convolution_is_padded_unless_it_has_a_stride(convolution, shape):
    layer = ConvBN(convolution, jnp.float32)
    x = jnp.zeros((2, 9, 11, 3))
    y, _ = jax.eval_shape(
        lambda: layer.init_with_output(jax.random.key(0), x, train=False)
    )
    assert y.shape == (2, *shape, 8)
