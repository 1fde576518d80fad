"""Winograd's convolution against the direct one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from flaxcnn.layers import conv, winograd

LAYOUT = ("NHWC", "HWIO", "NHWC")
CASES = [  # (samples, size, padding): even and odd sizes; one chunk and more
    (2, (8, 8), ((1, 1), (1, 1))),
    (3, (7, 8), ((1, 1), (0, 0))),
    (2, (5, 6), ((0, 1), (2, 1))),
    (1, (3, 3), ((0, 0), (0, 0))),
    (6, (64, 65), ((1, 1), (1, 1))),
]


def direct(x, kernel, padding):
    return lax.conv_general_dilated(
        x, kernel, (1, 1), padding, dimension_numbers=LAYOUT
    )


def normal(seed, *shape, dtype="f8"):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


@pytest.mark.parametrize(("samples", "size", "padding"), CASES)
def test_it_is_the_direct_convolution(samples, size, padding):
    with jax.enable_x64(True):
        x, kernel = normal(0, samples, *size, 3), normal(1, 3, 3, 3, 4)
        y, pull = jax.vjp(lambda k: direct(x, k, padding), kernel)
        g = jnp.sin(y)
        ours = jax.jit(winograd.forward, static_argnums=2)(x, kernel, padding)
        gradient = jax.jit(winograd.kernel_gradient, static_argnums=2)(g, x, padding)
        np.testing.assert_allclose(ours, y, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(gradient, pull(g)[0], rtol=1e-11, atol=1e-11)


def test_float32_is_as_close_to_float64_as_the_direct_one():
    """Output and both gradients of 64 channels of 32x32, which take this way."""
    padding = ((1, 1), (1, 1))
    shapes = (4, 32, 32, 64), (3, 3, 64, 64), (4, 32, 32, 64)
    arrays = [normal(i, *shape, dtype="f4") for i, shape in enumerate(shapes)]
    assert winograd.pays(arrays[0], shapes[1], (1, 1), padding)

    def results(f, x, kernel, g):
        y, pull = jax.vjp(f, x, kernel)
        return y, *pull(g)

    def ours(x, kernel):
        return conv(x, kernel, (1, 1), padding)

    def theirs(x, kernel):
        return direct(x, kernel, padding)

    run = jax.jit(results, static_argnums=0)
    assert (
        "4x4x64x64" in run.lower(ours, *arrays).as_text()
    )  # the transformed kernel's gradient: it does take this way
    single = [np.asarray(a) for f in (ours, theirs) for a in run(f, *arrays)]
    with jax.enable_x64(True):
        exact = run(theirs, *(jnp.asarray(a, "f8") for a in arrays))
        exact = [np.asarray(a) for a in exact]

    def error(a, b):
        return np.sqrt(np.mean((a - b) ** 2) / np.mean(b**2))

    for own, stock, b in zip(single[:3], single[3:], exact, strict=True):
        assert own.dtype == np.float32
        assert error(own, b) < 1e-6
        assert error(own, b) < 2 * error(stock, b)


@pytest.mark.parametrize(
    ("batch", "channels", "window", "strides"),
    [
        (4, (64, 64), (3, 3), (2, 2)),
        (4, (64, 64), (1, 1), (1, 1)),
        (4, (64, 64), (5, 5), (1, 1)),
        (4, (3, 64), (3, 3), (1, 1)),
        (1, (64, 64), (3, 3), (1, 1)),
    ],
)
def test_where_it_does_not_pay(batch, channels, window, strides):
    x = jax.ShapeDtypeStruct((batch, 32, 32, channels[0]), jnp.float32)
    padding = [(k // 2, k // 2) for k in window]
    assert not winograd.pays(x, (*window, *channels), strides, padding)
