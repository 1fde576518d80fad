"""BatchNorm and LRN against torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from flaxcnn.errors import FlaxcnnError
from flaxcnn.layers import BatchNorm, local_response_norm, relu


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype("f4")


def channels_first(x):
    return np.moveaxis(x, -1, 1)


@pytest.mark.parametrize("shape", [(3, 4, 2, 5), (6, 5)])
@pytest.mark.parametrize("momentum", [0.1, 0.7])
def test_batch_norm_against_torch(shape, momentum):
    torch = pytest.importorskip("torch")
    theirs = (torch.nn.BatchNorm2d if len(shape) == 4 else torch.nn.BatchNorm1d)(
        5, eps=1e-3, momentum=momentum
    )
    ours = BatchNorm(momentum=momentum, epsilon=1e-3)
    variables = ours.init(jax.random.key(0), jnp.zeros(shape), train=True)
    np.testing.assert_array_equal(variables["batch_stats"]["mean"], np.zeros(5))
    np.testing.assert_array_equal(variables["batch_stats"]["var"], np.ones(5))
    scale, bias = normal(8, 5), normal(9, 5)
    params = {"scale": scale, "bias": bias}
    theirs.weight.data, theirs.bias.data = torch.tensor(scale), torch.tensor(bias)
    stats = variables["batch_stats"]

    @jax.jit
    def step(params, stats, x, g):
        def f(params, x):
            return ours.apply(
                {"params": params, "batch_stats": stats},
                x,
                train=True,
                mutable=["batch_stats"],
            )

        y, pull, updates = jax.vjp(f, params, x, has_aux=True)
        return y, updates["batch_stats"], *pull(g)

    for i in range(3):
        x, g = 2 * normal(i, *shape) + i, normal(10 + i, *shape)
        y, stats, dparams, dx = step(params, stats, x, g)
        theirs.zero_grad()
        tx = torch.tensor(channels_first(x)).requires_grad_()
        ty = theirs(tx)
        ty.backward(torch.tensor(channels_first(g)))
        for a, b in [
            (channels_first(y), ty.detach()),
            (channels_first(dx), tx.grad),
            (dparams["scale"], theirs.weight.grad),
            (dparams["bias"], theirs.bias.grad),
            (stats["mean"], theirs.running_mean),
            (stats["var"], theirs.running_var),
        ]:
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5)
    variables = {"params": params, "batch_stats": stats}
    y = ours.apply(variables, x, train=False)
    ty = theirs.eval()(torch.tensor(channels_first(x))).detach()
    np.testing.assert_allclose(channels_first(y), ty, rtol=1e-4, atol=1e-5)


def textbook(params, x):
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    y = (x - mean) / jnp.sqrt(var + 1e-5) * params["scale"] + params["bias"]
    n = x.size // x.shape[-1]
    return y, 0.1 * mean, 0.9 + 0.1 * var * n / (n - 1)


@pytest.mark.parametrize(("dtype", "tolerance"), [("f8", 1e-11), ("f4", 1e-5)])
def test_batch_norm_gradients_against_the_derived_formula(dtype, tolerance):
    """In float64, and those of the running statistics too."""
    with jax.enable_x64(True):
        x = jnp.asarray(3 + normal(0, 4, 5, 6, 3).astype("f8"))
        params = {"scale": 1 + normal(1, 3), "bias": normal(2, 3)}
        params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), params)
        shapes = (x.shape, (3,), (3,))
        pulls = tuple(jnp.asarray(normal(i, *s)) for i, s in enumerate(shapes))

        def ours(params, x):
            start = {"mean": jnp.zeros(3), "var": jnp.ones(3)}
            y, new = BatchNorm().apply(
                {"params": params, "batch_stats": start}, x, train=True,
                mutable=["batch_stats"],
            )  # fmt: skip
            return y, new["batch_stats"]["mean"], new["batch_stats"]["var"]

        def gradients(f, dtype):
            given = jax.tree.map(lambda a: a.astype(dtype), (params, x))
            outputs, pull = jax.vjp(f, *given)
            cotangents = jax.tree.map(lambda g, y: g.astype(y.dtype), pulls, outputs)
            return jax.tree.leaves((outputs, pull(cotangents)))

        for a, b in zip(gradients(ours, dtype), gradients(textbook, "f8"), strict=True):
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def test_batch_norm_keeps_its_input_alone():
    x = jnp.asarray(normal(0, 16, 8, 8, 4), jnp.bfloat16)
    layer = BatchNorm(dtype=jnp.bfloat16)
    variables = layer.init(jax.random.key(0), x, train=True)

    def f(params, x):
        given = {**variables, "params": params}
        return layer.apply(given, x, train=True, mutable=["batch_stats"])[0]

    kept = jax.tree.leaves(jax.vjp(f, variables["params"], x)[1])
    assert [a.dtype for a in kept if a.size >= x.size] == [jnp.bfloat16]
    assert sum(a.nbytes for a in kept) < 1.1 * x.nbytes


def test_batch_norm_and_relu_train_in_little_memory():
    """A compiled step of L layers has 2 L activations, and some to work with."""
    layers, x = 12, jax.ShapeDtypeStruct((64, 16, 16, 32), jnp.float32)

    class Stack(nn.Module):
        @nn.compact
        def __call__(self, x):
            for _ in range(layers):
                x = nn.Dense(32, use_bias=False)(x)
                x = relu(BatchNorm()(x, train=True))
            return x

    def loss(variables, x):
        y, new = Stack().apply(variables, x, mutable=["batch_stats"])
        return jnp.square(y).sum(), new

    variables = jax.eval_shape(Stack().init, jax.random.key(0), x)
    step = jax.jit(jax.grad(loss, has_aux=True)).lower(variables, x).compile()
    used = step.memory_analysis().temp_size_in_bytes
    assert used < (2 * layers + 6) * 4 * x.size


def test_batch_norm_in_evaluation_is_differentiable():
    x, mean, var = normal(0, 4, 3, 2, 5), normal(1, 5), np.exp(normal(2, 5))
    params = {"scale": normal(3, 5), "bias": normal(4, 5)}
    stats = {"mean": mean, "var": var}

    def f(params, x):
        variables = {"params": params, "batch_stats": stats}
        return BatchNorm().apply(variables, x, train=False)

    g = normal(5, *x.shape)
    dparams, dx = jax.vjp(f, params, x)[1](g)
    xhat = (x - mean) / np.sqrt(var + 1e-5)
    np.testing.assert_allclose(dparams["scale"], (g * xhat).sum((0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(dparams["bias"], g.sum((0, 1, 2)), rtol=1e-4)
    expected = g * params["scale"] / np.sqrt(var + 1e-5)
    np.testing.assert_allclose(dx, expected, rtol=1e-4)


def test_batch_norm_does_not_cancel():
    x = 1000 + normal(0, 8, 16, 16, 4)
    layer = BatchNorm(momentum=1.0)
    variables = layer.init(jax.random.key(0), x, train=False)
    y, new = layer.apply(variables, x, train=True, mutable=["batch_stats"])
    exact = x.astype("f8")
    mean, var = exact.mean((0, 1, 2)), exact.var((0, 1, 2))
    np.testing.assert_allclose(
        y, (exact - mean) / np.sqrt(var + 1e-5), rtol=1e-3, atol=1e-3
    )
    unbiased = exact.var((0, 1, 2), ddof=1)
    np.testing.assert_allclose(new["batch_stats"]["var"], unbiased, rtol=1e-5)


def test_batch_norm_of_one_value_and_of_constants():
    layer = BatchNorm()
    for shape in ((1, 1, 1, 3), (4, 2, 2, 3)):
        x = jnp.full(shape, 7.0)
        variables = layer.init(jax.random.key(0), x, train=True)

        @jax.jit
        def run(x, variables=variables):
            def f(x):
                return layer.apply(variables, x, train=True, mutable=["batch_stats"])

            y, pull, new = jax.vjp(f, x, has_aux=True)
            return y, new, pull(x)[0]

        y, new, dx = run(x)
        np.testing.assert_array_equal(y, jnp.zeros(shape))
        assert np.isfinite(dx).all()
        np.testing.assert_allclose(new["batch_stats"]["var"], 0.9, rtol=1e-6)


def test_batch_norm_bfloat16():
    x = jnp.asarray(3 + normal(0, 64, 8, 8, 2), jnp.bfloat16)
    layer = BatchNorm(momentum=1.0, dtype=jnp.bfloat16)
    variables = layer.init(jax.random.key(0), x, train=True)
    y, new = layer.apply(variables, x, train=True, mutable=["batch_stats"])
    assert y.dtype == jnp.bfloat16
    assert {a.dtype for a in jax.tree.leaves((variables, new))} == {jnp.dtype("f4")}
    # Far more exact than bfloat16's 3 digits: the sums are float32.
    exact = np.asarray(x, "f8").mean((0, 1, 2))
    np.testing.assert_allclose(new["batch_stats"]["mean"], exact, rtol=1e-5)
    assert BatchNorm().apply(variables, x, train=False).dtype == jnp.float32


def test_batch_norm_without_scale_and_bias():
    x = normal(0, 4, 3)
    layer = BatchNorm(use_scale=False, use_bias=False)
    variables = layer.init(jax.random.key(0), x, train=True)
    assert set(variables) == {"batch_stats"}
    y, _ = layer.apply(variables, x, train=True, mutable=["batch_stats"])
    expected = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [1, 3, 5])
def test_local_response_norm_against_torch(size):
    torch = pytest.importorskip("torch")
    x, alpha = 10 * normal(0, 2, 3, 3, 7), 0.02
    # torch divides alpha by the size; the paper does not.
    theirs = torch.nn.LocalResponseNorm(size, alpha=alpha * size, beta=0.6, k=1.5)
    y = local_response_norm(jnp.asarray(x), size, 1.5, alpha, 0.6)
    expected = theirs(torch.tensor(channels_first(x)))
    np.testing.assert_allclose(channels_first(y), expected, rtol=1e-5, atol=1e-6)


def test_local_response_norm_defaults_and_errors():
    # One channel of 100: 100 / (2 + 1e-4 * 100^2)^0.75 = 100 / 3^0.75.
    y = local_response_norm(jnp.full((1, 1), 100.0))
    np.testing.assert_allclose(y, 100 / 3**0.75, rtol=1e-6)
    with pytest.raises(FlaxcnnError, match="odd"):
        local_response_norm(jnp.ones((1, 4)), 4)
