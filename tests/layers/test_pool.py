"""Pooling against torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxcnn.errors import FlaxcnnError
from flaxcnn.layers import (
    adaptive_avg_pool,
    avg_pool,
    global_avg_pool,
    max_pool,
    p_norm_pool,
    pool,
)

# (size, window, strides, padding, ceil_mode)
CASES = [
    ((8, 8), 2, None, 0, False),
    ((7, 9), 3, 2, 1, False),
    ((7, 8), 3, 2, 0, True),
    ((8, 7), 3, 2, 1, True),
    ((9, 6), (3, 2), (1, 3), (1, 0), True),
    ((6, 6), 2, 3, 1, True),
    ((5, 5), 3, 1, 1, True),
    ((2, 2), 3, 2, 0, True),
    ((1, 4), 5, 1, 2, False),
]


def to_torch(x):
    return pytest.importorskip("torch").tensor(np.array(x)).permute(0, 3, 1, 2)


def from_torch(x):
    return x.detach().permute(0, 2, 3, 1).numpy()


def compare(ours, theirs, x):
    """Value and gradient of both, to float32."""

    @jax.jit
    def value_and_gradient(x, weights):
        y, pull = jax.vjp(ours, x)
        return y, pull(weights[:, : y.shape[1], : y.shape[2]])[0]

    weights = np.random.default_rng(1).standard_normal((2, 12, 12, 3)).astype("f4")
    y, dx = value_and_gradient(x, weights)
    tx = to_torch(x).requires_grad_()
    ty = theirs(tx)
    np.testing.assert_allclose(y, from_torch(ty), rtol=1e-5, atol=1e-6)
    ty.backward(to_torch(weights[:, : y.shape[1], : y.shape[2]]))
    np.testing.assert_allclose(dx, from_torch(tx.grad), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("elements", [1, pool.ELEMENTS])
@pytest.mark.parametrize(("size", "window", "strides", "padding", "ceil"), CASES)
def test_max_pool_against_torch(
    size, window, strides, padding, ceil, elements, monkeypatch
):
    """One sample at a time, and all at once."""
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(pool, "ELEMENTS", elements)
    # Few different values, all negative: ties in most windows, and zero would win.
    x = np.random.default_rng(0).integers(-4, -1, (2, *size, 3)).astype("f4")
    compare(
        lambda x: max_pool(x, window, strides, padding, ceil),
        lambda x: torch.nn.functional.max_pool2d(
            x, window, strides, padding, ceil_mode=ceil
        ),
        x,
    )


@pytest.mark.parametrize("count", [True, False])
@pytest.mark.parametrize(("size", "window", "strides", "padding", "ceil"), CASES)
def test_avg_pool_against_torch(size, window, strides, padding, ceil, count):
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).standard_normal((2, *size, 3)).astype("f4")
    compare(
        lambda x: avg_pool(x, window, strides, padding, ceil, count),
        lambda x: torch.nn.functional.avg_pool2d(
            x, window, strides, padding, ceil, count
        ),
        x,
    )


def test_p_norm_pool_against_torch():
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).standard_normal((2, 7, 8, 3)).astype("f4")

    def theirs(x):
        total = torch.nn.functional.avg_pool2d(x.abs() ** 3, 3, 2, 1) * 9
        return total ** (1 / 3)

    compare(lambda x: p_norm_pool(x, 3, 3, 2, 1), theirs, x)


def test_p_norm_pool_tends_to_max_pool():
    x = jnp.asarray(np.random.default_rng(0).uniform(0, 50, (1, 8, 8, 2)), "f4")

    @jax.jit
    def run(x):
        expected = max_pool(x, 3, 2)
        pools = [p_norm_pool(x, p, 3, 2) for p in (2, 10, 100, 1000)]
        errors = [jnp.abs(y - expected).max() for y in pools]
        return errors, p_norm_pool(x, 1, 2), 4 * avg_pool(x, 2)

    errors, norm, total = run(x)
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.1
    np.testing.assert_allclose(norm, total, rtol=1e-5)


def test_p_norm_pool_gradient_at_zero_is_finite():
    x = jnp.zeros((1, 4, 4, 1)).at[0, 0, 0, 0].set(2.0)

    @jax.jit
    def gradients(x):
        return [
            jax.grad(lambda x, p=p: p_norm_pool(x, p, 2).sum())(x)[0, :, :, 0]
            for p in (1, 1.5, 2, 300.0)
        ]

    for dx in gradients(x):
        assert np.isfinite(dx).all()
        assert dx[0, 0] == 1
        assert not dx[2:].any()
        assert not dx[:, 2:].any()


@pytest.mark.parametrize("size", [(7, 7), (1, 3), (12, 9), (5, 12)])
def test_adaptive_avg_pool_against_torch(size):
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).standard_normal((2, 13, 9, 3)).astype("f4")
    compare(
        lambda x: adaptive_avg_pool(x, size),
        lambda x: torch.nn.functional.adaptive_avg_pool2d(x, size),
        x,
    )


def test_global_avg_pool():
    x = np.random.default_rng(0).uniform(1, 2, (2, 5, 6, 3)).astype("f4")
    np.testing.assert_allclose(global_avg_pool(x), x.mean((1, 2)), rtol=1e-6)
    # 65536 ones: a bfloat16 sum would stop at 256.
    y = global_avg_pool(jnp.ones((1, 256, 256, 1), jnp.bfloat16))
    assert y.dtype == jnp.bfloat16
    assert float(y[0, 0]) == 1


def test_bfloat16_stays_bfloat16():
    x = jnp.ones((1, 4, 4, 1), jnp.bfloat16)
    for y in (max_pool(x, 2), avg_pool(x, 2), p_norm_pool(x, 2, 2)):
        assert y.dtype == jnp.bfloat16
        assert y.shape == (1, 2, 2, 1)


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
@pytest.mark.parametrize("samples", [3, 4])
def test_max_pool_of_other_types_and_batches(dtype, samples, monkeypatch):
    """All is exact, whether two samples at a time divide the batch or not."""
    monkeypatch.setattr(pool, "ELEMENTS", 2 * 8 * 8 * 3)
    x = np.random.default_rng(0).integers(-4, 4, (samples, 8, 8, 3)).astype("f4")

    @jax.jit
    def value_and_gradient(x):
        y, pull = jax.vjp(lambda x: max_pool(x, 3, 2, 1), x)
        return y, pull(y)[0]

    with jax.enable_x64(dtype == "float64"):
        found = value_and_gradient(jnp.asarray(x, dtype))
        assert {a.dtype for a in found} == {jnp.dtype(dtype)}
    alone = jax.vmap(value_and_gradient)(x[:, None])
    for ours, expected in zip(found, alone, strict=True):
        np.testing.assert_array_equal(np.asarray(ours, "f4"), expected[:, 0])


def test_max_pool_twice_derived_at_ties_and_nan_against_torch():
    torch = pytest.importorskip("torch")
    direction = np.arange(1, 5, dtype="f4").reshape(1, 2, 2, 1)
    nan = np.array([1, np.nan, 3, 4], "f4").reshape(1, 2, 2, 1)

    def slope(x):
        return jax.grad(lambda x: jnp.square(max_pool(x, 2)).sum())(x)

    def torch_slope(x):
        y = torch.nn.functional.max_pool2d(x, 2).square().sum()
        return torch.autograd.grad(y, x, create_graph=True)[0]

    ties = np.ones((1, 2, 2, 1), "f4")
    ours = jax.grad(lambda x: (slope(x) * direction).sum())(ties)
    x = to_torch(ties).requires_grad_()
    (torch_slope(x) * to_torch(direction)).sum().backward()
    np.testing.assert_array_equal(ours, from_torch(x.grad))
    expected = torch_slope(to_torch(nan).requires_grad_())
    np.testing.assert_array_equal(slope(nan), from_torch(expected))
    np.testing.assert_array_equal(max_pool(nan, 2), [[[[np.nan]]]])


def test_an_empty_batch():
    grad = jax.grad(lambda x: max_pool(x, 3, 2, 1).sum())
    assert grad(jnp.ones((0, 8, 8, 1))).shape == (0, 8, 8, 1)


def test_sizes_may_be_integers_of_numpy():
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    found = max_pool(x, np.int64(2), np.int32(2))
    np.testing.assert_array_equal(found, max_pool(x, 2))


def test_max_pool_gradient_is_deterministic_code():
    grad = jax.jit(jax.grad(lambda x: max_pool(x, 3, 2, 1).sum()))
    assert "select_and_scatter" not in grad.lower(jnp.ones((1, 8, 8, 1))).as_text()


@pytest.mark.parametrize("pool", [max_pool, avg_pool])
def test_bad_input_says_the_cure(pool):
    x = jnp.ones((1, 4, 4, 1))
    with pytest.raises(FlaxcnnError, match="larger input"):
        pool(x, 5)
    with pytest.raises(FlaxcnnError, match="half the window"):
        pool(x, 2, 2, 2)
    with pytest.raises(FlaxcnnError, match="N, H, W, C"):
        pool(x[0], 2)
    for p in (0.5, np.inf):
        with pytest.raises(FlaxcnnError, match="finite p of 1 or more"):
            p_norm_pool(x, p, 2)
