"""The wirings that have no reference implementation, and the residual blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import flaxcnn
from flaxcnn.errors import FlaxcnnError
from flaxcnn.models.inception_resnet import BLOCK17, Residual


def outline(name, size=299, **fields):
    """Parameters, and [H, W, C] of the endpoints, without computing anything."""
    model = flaxcnn.create_model(name, **fields)
    x = jnp.zeros((1, size, size, 3))

    @jax.eval_shape
    def outlined():
        variables = model.init(jax.random.key(0), x, train=False)
        return variables["params"], model.apply(
            variables, x, train=False, endpoints=True
        )[1]

    params, ends = outlined
    return params, {name: end.shape[1:] for name, end in ends.items()}


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "fields", "count", "blocks", "channels"),
    [
        ("inception_resnet_v2", {}, 55_843_464, (10, 20, 9), (320, 1088, 2080)),
        ("inception_resnet_v2", {"wiring": "paper"}, 32_433_928, (5, 10, 5),
         (384, 1152, 2144)),
        ("inception_resnet_v1", {}, 22_756_328, (5, 10, 5), (256, 896, 1792)),
    ],
)  # fmt: skip
def test_wirings(name, fields, count, blocks, channels):
    params, ends = outline(name, **fields)
    assert sum(p.size for p in jax.tree.leaves(params)) == count
    for repeat, size, number, width in zip(
        ("repeat", "repeat_1", "repeat_2"), (35, 17, 8), blocks, channels, strict=True
    ):
        assert ends[repeat] == (size, size, width)
        assert sum(key.startswith(f"{repeat}.") for key in params) == number
    released = name == "inception_resnet_v2" and not fields
    assert ends["pre_logits"] == (1536 if released else channels[-1],)
    assert ("block8" in ends) == released


def test_residual_is_scaled_and_added():
    x = jax.random.normal(jax.random.key(0), (2, 4, 5, 24))

    def apply(scale, act):
        block = Residual(BLOCK17, scale, act)
        return block.apply(variables, x, train=False)

    variables = Residual(BLOCK17, 1.0).init(jax.random.key(1), x, train=False)
    bias = variables["params"]["conv2d"]["bias"]
    variables["params"]["conv2d"]["bias"] = bias + 0.5
    np.testing.assert_array_equal(apply(0.0, act=True), jnp.maximum(x, 0))
    np.testing.assert_array_equal(apply(0.0, act=False), x)
    residual = apply(1.0, act=False) - x
    assert np.abs(residual - 0.5).max() > 0.1
    np.testing.assert_allclose(apply(0.2, act=False), x + 0.2 * residual, atol=1e-5)
    np.testing.assert_array_equal(
        apply(0.2, act=True), jnp.maximum(apply(0.2, act=False), 0)
    )


@pytest.mark.long
def test_scales_are_those_of_the_stages():
    residuals = {}

    def record(call, args, kwargs, context):
        if isinstance(context.module, Residual):
            residuals[context.module.name] = context.module
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        outline("inception_resnet_v2", size=75, scales=(0.3, 0.2, 0.1))
    assert len(residuals) == 40
    last = residuals.pop("block8")
    assert (last.scale, last.act) == (1.0, False)
    scales = {"repeat": 0.3, "repeat_1": 0.2, "repeat_2": 0.1}
    for name, residual in residuals.items():
        assert residual.scale == scales[name.split(".")[0]]
        assert residual.act


def test_unknown_wiring():
    with pytest.raises(FlaxcnnError, match="wiring 'papers'; did you mean paper"):
        outline("inception_resnet_v2", wiring="papers")
