"""Conv against torch, flax and the stock gradient rule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from flaxcnn.errors import FlaxcnnError
from flaxcnn.layers import Conv, MapDense, conv, conv_to_dense, dense_to_conv

# (input size, kernel, strides, padding)
CASES = [
    ((7, 8), (3, 3), (1, 1), ((1, 1), (1, 1))),
    ((7, 8), (3, 3), (2, 2), ((1, 1), (1, 1))),
    ((9, 7), (3, 2), (3, 1), ((0, 0), (1, 0))),
    ((8, 8), (2, 2), (2, 2), ((0, 0), (0, 0))),
    ((8, 9), (4, 4), (1, 2), ((2, 1), (0, 3))),
    ((9, 9), (5, 5), (3, 3), ((2, 2), (2, 2))),
    ((5, 6), (1, 1), (1, 1), ((0, 0), (0, 0))),
    ((5, 6), (1, 1), (2, 2), ((0, 0), (0, 0))),
    ((5, 6), (1, 1), (1, 2), ((1, 1), (0, 2))),
    ((4, 4), (4, 4), (1, 1), ((0, 0), (0, 0))),
    ((11, 10), (7, 7), (2, 2), ((3, 3), (3, 3))),
    ((6, 6), (1, 7), (1, 1), ((0, 0), (3, 3))),
    ((1, 1), (3, 3), (1, 1), ((1, 1), (1, 1))),
    ((2, 1), (3, 3), (2, 2), ((1, 1), (1, 1))),
    ((2, 3), (5, 3), (1, 2), ((2, 2), (1, 1))),
]


def stock(x, kernel, strides, padding, dilation=(1, 1), groups=1):
    return lax.conv_general_dilated(
        x,
        kernel,
        strides,
        padding,
        rhs_dilation=dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def normal(seed, *shape, dtype="f8"):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def results(f, x, kernel, *args):
    """Output, and gradients of a loss whose output gradient is no constant."""

    @jax.jit
    def run(x, kernel):
        y, pull = jax.vjp(lambda x, k: f(x, k, *args), x, kernel)
        return y, *pull(jnp.sin(y))

    return run(x, kernel)


@pytest.mark.parametrize(("size", "window", "strides", "padding"), CASES)
def test_gradients_are_the_stock_ones(size, window, strides, padding):
    with jax.enable_x64(True):
        x, kernel = normal(0, 3, *size, 4), normal(1, *window, 4, 5)
        args = (strides, padding)
        ours, theirs = (results(f, x, kernel, *args) for f in (conv, stock))
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype == np.float64
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("size", "strides"), [(3, (1, 1)), (3, (2, 2)), (1, (1, 1))])
def test_kernel_gradient_in_chunks(size, strides):
    """A batch large enough to be split: 6 images of 96x96."""
    with jax.enable_x64(True):
        x, kernel = normal(0, 6, 96, 96, 2), normal(1, size, size, 2, 3)
        args = (strides, ((size // 2,) * 2,) * 2)
        ours, theirs = (results(f, x, kernel, *args) for f in (conv, stock))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dilation", [(1, 1), (2, 3)])
@pytest.mark.parametrize(
    ("size", "window", "strides", "padding"),
    [*CASES[:3], ((2, 2), (3, 3), (1, 1), ((3, 3), (3, 3)))],
)
def test_depthwise_is_the_stock_one(size, window, strides, padding, dilation):
    with jax.enable_x64(True):
        x, kernel = normal(0, 3, *size, 4), normal(1, *window, 1, 4)
        args = (strides, padding, dilation, 4)
        ours, theirs = (results(f, x, kernel, *args) for f in (conv, stock))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11)


def test_second_derivative():
    with jax.enable_x64(True):
        x, kernel, args = (
            normal(0, 2, 5, 5, 2),
            normal(1, 3, 3, 2, 2),
            ((2, 2), ((1, 1),) * 2),
        )

        def twice(f):
            slope = jax.grad(lambda k: jnp.sin(f(x, k, *args)).sum())
            return jax.grad(lambda k: jnp.square(slope(k)).sum())(kernel)

        np.testing.assert_allclose(
            jax.jit(twice, static_argnums=0)(conv),
            jax.jit(twice, static_argnums=0)(stock),
            rtol=1e-10,
        )


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("dilation", [1, 2])
def test_forward_and_gradients_against_torch(groups, dilation):
    torch = pytest.importorskip("torch")
    x, kernel = (
        normal(0, 2, 9, 9, 4, dtype="f4"),
        normal(1, 3, 3, 4 // groups, 8, dtype="f4"),
    )
    layer = Conv(8, (3, 3), 2, 1, dilation, groups)
    bias = normal(2, 8, dtype="f4")
    y, pull = jax.vjp(
        lambda k, x: layer.apply({"params": {"kernel": k, "bias": bias}}, x), kernel, x
    )
    tx = torch.tensor(np.array(x)).permute(0, 3, 1, 2).requires_grad_()
    tk = torch.tensor(np.array(kernel)).permute(3, 2, 0, 1).requires_grad_()
    tb = torch.tensor(np.array(bias))
    ty = torch.nn.functional.conv2d(tx, tk, tb, 2, 1, dilation, groups)
    np.testing.assert_allclose(y, ty.detach().permute(0, 2, 3, 1), rtol=1e-4, atol=1e-5)
    g = normal(3, *y.shape, dtype="f4")
    ty.backward(torch.tensor(np.array(g)).permute(0, 3, 1, 2))
    dk, dx = pull(g)
    np.testing.assert_allclose(dk, tk.grad.permute(2, 3, 1, 0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(dx, tx.grad.permute(0, 2, 3, 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("padding", ["SAME", "VALID", 1, (1, 2), ((1, 0), (2, 1))])
def test_interface_is_that_of_flax(padding):
    x = normal(0, 2, 8, 7, 3, dtype="f4")
    ours, theirs = (c(5, (3, 2), (2, 1), padding) for c in (Conv, nn.Conv))
    params, expected = (c.init(jax.random.key(0), x) for c in (ours, theirs))
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    np.testing.assert_allclose(
        ours.apply(params, x), theirs.apply(params, x), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
@pytest.mark.parametrize("x_dtype", [jnp.float32, jnp.bfloat16])
def test_dtypes_are_those_of_flax(window, dtype, x_dtype):
    x = normal(0, 2, 6, 6, 8, dtype=x_dtype)
    both = []
    for c in (Conv, nn.Conv):
        layer = c(4, (window, window), padding=0, dtype=dtype)
        params = layer.init(jax.random.key(0), x)

        @jax.jit
        def run(params, x, layer=layer):
            y, pull = jax.vjp(layer.apply, params, x)
            dparams, dx = pull(y)
            return {"y": y, "dx": dx, **dparams["params"]}

        both.append(run(params, x))
    ours, theirs = both
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype, name
        scale = float(jnp.abs(theirs[name]).max())
        tolerance = 0.02 if jnp.bfloat16 in (dtype, x_dtype) else 1e-5
        difference = jnp.abs(value.astype("f4") - theirs[name].astype("f4"))
        assert float(difference.max()) <= tolerance * scale, name


def test_unused_input_gradient_is_not_computed():
    """And no branch on the platform is left."""
    x, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 4))

    def loss(x, k):
        return jnp.square(conv(x, k, (1, 1), ((1, 1), (1, 1)))).sum()

    def program(argnums):
        return jax.jit(jax.grad(loss, argnums)).lower(x, kernel).compile().as_text()

    both, kernel_only = program((0, 1)), program(1)
    assert "conditional(" not in both
    if jax.default_backend() == "cpu":
        assert both.count(" convolution(") == 3
        assert kernel_only.count(" convolution(") == 2


def test_other_platforms_get_the_stock_rule():
    x = jnp.ones((64, 16, 16, 3))
    for kernel, groups, on_cpu in ((3, 3, 3, 4), 1, 9), ((3, 3, 1, 3), 3, 0):

        def loss(x, k, groups=groups):
            return jnp.square(conv(x, k, (2, 2), groups=groups)).sum()

        traced = jax.jit(jax.grad(loss, (0, 1))).trace(x, jnp.ones(kernel))
        for platform, convolutions in (("cuda", 3), ("tpu", 3), ("cpu", on_cpu)):
            code = traced.lower(lowering_platforms=(platform,)).as_text()
            assert code.count("stablehlo.convolution") == convolutions


def test_dense_is_conv_lecture_example():
    x = jnp.array([[1.0, 2.0], [3.0, 4.0]]).reshape(1, 2, 2, 1)
    dense = {
        "kernel": jnp.array([[1.1, 1.2, 1.3, 1.4], [1.5, 1.6, 1.7, 1.8]]).T,
        "bias": jnp.array([1.9, 2.0]),
    }
    whole, stacked = dense_to_conv(dense, 2, 2), dense_to_conv(dense, 1, 1)
    outputs = [
        nn.Dense(2).apply({"params": dense}, x.reshape(1, 4)),
        Conv(2, (2, 2), padding=0).apply({"params": whole}, x),
        Conv(2, (1, 1)).apply({"params": stacked}, x.reshape(1, 1, 1, 4)),
    ]
    for y in outputs:
        np.testing.assert_allclose(nn.relu(y).ravel(), [14.9, 19.0], rtol=1e-6)
    for params in (whole, stacked):
        jax.tree.map(np.testing.assert_array_equal, conv_to_dense(params), dense)


def test_dense_to_conv_flattens_nhwc():
    x = normal(0, 2, 3, 4, 5, dtype="f4")
    params = nn.Dense(6, use_bias=False).init(jax.random.key(0), x.reshape(2, -1))
    y = nn.Dense(6, use_bias=False).apply(params, x.reshape(2, -1))
    converted = dense_to_conv(params["params"], 3, 4)
    assert converted["kernel"].shape == (3, 4, 5, 6)
    z = Conv(6, (3, 4), padding=0, use_bias=False).apply({"params": converted}, x)
    np.testing.assert_allclose(z.reshape(2, 6), y, rtol=1e-5, atol=1e-5)


def test_map_dense_is_a_dense_layer_on_the_flattened_map():
    x = normal(0, 2, 3, 4, 5, dtype="f4")
    layer = MapDense(6, (3, 4))
    params = layer.init(jax.random.key(0), x)["params"]
    flat = {"kernel": params["map_kernel"].reshape(-1, 6), "bias": params["bias"] + 1}
    shifted = {**params, "bias": flat["bias"]}
    y = nn.Dense(6).apply({"params": flat}, x.reshape(2, -1))
    ours = layer.apply({"params": shifted}, x)
    np.testing.assert_allclose(ours, y[:, None, None], rtol=1e-5, atol=1e-5)
    # Its initialisation is the Dense layer's: 60 inputs.
    assert params["map_kernel"].std() == pytest.approx(60**-0.5, rel=0.1)


def test_map_dense_slides_over_a_larger_map():
    x = normal(0, 2, 5, 6, 3, dtype="f4")
    layer = MapDense(4, (3, 4))
    variables = layer.init(jax.random.key(0), x[:, :3, :4])
    y = layer.apply(variables, x)
    assert y.shape == (2, 3, 3, 4)
    for i, j in np.ndindex(3, 3):
        window = x[:, i : i + 3, j : j + 4]
        alone = layer.apply(variables, window)[:, 0, 0]
        np.testing.assert_allclose(y[:, i, j], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (MapDense(4, (3, 3)), (1, 3, 2, 5), "at least 3x3 pixels"),
        (MapDense(4, (3, 3)), (1, 45), "N, H, W, C"),
        (Conv(4, (3, 3)), (8, 8, 3), "NHWC|N, H, W, C"),
        (Conv(4, 3), (1, 8, 8, 3), r"use \(3, 3\)"),
        (Conv(4, (3, 3), feature_group_count=2), (1, 8, 8, 3), "feature_group_count"),
        (Conv(4, (5, 5), padding=0), (1, 4, 4, 3), "larger input"),
        (Conv(4, (5, 5), padding=0, feature_group_count=4), (1, 3, 3, 4), "larger"),
        (Conv(64, (3, 3), padding=0), (1536, 1, 1, 64), "larger input"),
        (Conv(4, (3, 3), padding="same"), (1, 8, 8, 3), "SAME"),
        (Conv(4, (3, 3), padding=(1, 1, 1)), (1, 8, 8, 3), "give two"),
    ],
)
def test_bad_input_says_the_cure(layer, shape, message):
    with pytest.raises(FlaxcnnError, match=message):
        layer.init(jax.random.key(0), jnp.ones(shape))


@pytest.mark.parametrize("groups", [1, 2])
def test_an_empty_batch(groups):
    layer = Conv(2, (3, 3), 2, 1, feature_group_count=groups)
    variables = layer.init(jax.random.key(0), jnp.ones((1, 6, 6, 2)))
    grads = jax.grad(lambda v, x: layer.apply(v, x).sum())(
        variables, jnp.ones((0, 6, 6, 2))
    )
    assert not any(x.any() for x in jax.tree.leaves(grads))


def test_sizes_may_be_integers_of_numpy():
    x = normal(0, 1, 6, 6, 2, dtype="f4")
    layers = [Conv(2, (3, 3), t(2), t(1)) for t in (int, np.int64)]
    variables = layers[0].init(jax.random.key(0), x)
    np.testing.assert_array_equal(*(layer.apply(variables, x) for layer in layers))


def test_dense_to_conv_refuses_a_wrong_size():
    with pytest.raises(FlaxcnnError, match="real size"):
        dense_to_conv({"kernel": jnp.ones((10, 2))}, 3, 3)
