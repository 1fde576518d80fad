"""Size arithmetic against the shapes that torch and jax produce."""

from itertools import product

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from flaxcnn.errors import FlaxcnnError
from flaxcnn.layers import (
    conv_input_size,
    conv_output_size,
    receptive_field,
    same_padding,
)


def grid():
    for size, k, s, p, d in product(
        range(1, 11), range(1, 6), (1, 2, 3), range(3), (1, 2)
    ):
        if size + 2 * p >= d * (k - 1) + 1:
            yield size, k, s, p, d


def test_lecture_example():
    assert conv_output_size(4, 3) == 2


def test_output_size_is_jax_shape():
    for size, k, s, p, d in grid():
        shape = jax.eval_shape(
            lambda x, s=s, p=p, d=d, k=k: lax.conv_general_dilated(
                x, jnp.zeros((1, 1, k)), (s,), [(p, p)], rhs_dilation=(d,)
            ),
            jnp.zeros((1, 1, size)),
        ).shape
        assert conv_output_size(size, k, s, p, d) == shape[-1], (size, k, s, p, d)


@pytest.mark.parametrize("ceil_mode", [False, True])
def test_output_size_is_torch_shape(ceil_mode):
    torch = pytest.importorskip("torch")
    for size, k, s, p, d in grid():
        if p > k // 2:
            continue
        y = torch.nn.functional.max_pool1d(
            torch.zeros(1, 1, size), k, s, p, d, ceil_mode=ceil_mode
        )
        ours = conv_output_size(size, k, s, p, d, ceil_mode)
        assert ours == y.shape[-1], (size, k, s, p, d)


def test_input_size_is_the_smallest():
    for k, s, p, d in product((1, 2, 3, 5), (1, 2, 3), (0, 1, 2), (1, 2)):
        sizes = {}
        for size in range(40, 0, -1):
            if size + 2 * p >= d * (k - 1) + 1:
                sizes[conv_output_size(size, k, s, p, d)] = size
        for output in range(1, 10):
            if output in sizes:
                assert conv_input_size(output, k, s, p, d) == sizes[output]
            else:
                with pytest.raises(FlaxcnnError, match="no input"):
                    conv_input_size(output, k, s, p, d)


def test_same_padding_keeps_the_size():
    for k, d in product((1, 3, 5, 7), (1, 2, 3)):
        assert conv_output_size(32, k, 1, same_padding(k, d), d) == 32


def test_receptive_field_is_what_a_gradient_reaches():
    layers = [(3, 2), (5, 1), (3, 1, 2), (2, 2)]

    def output(x, at):
        for k, s, *d in layers:
            x = lax.conv_general_dilated(
                x, jnp.ones((1, 1, k)), (s,), "VALID", rhs_dilation=d or (1,)
            )
        return x[0, 0, at]

    seen = [
        jnp.nonzero(jax.grad(output)(jnp.ones((1, 1, 60)), at)[0, 0])[0]
        for at in (0, 1)
    ]
    size, jump = receptive_field(layers)
    assert (size, jump) == (21, 4)
    assert seen[0][-1] - seen[0][0] + 1 == size
    assert seen[1][0] - seen[0][0] == jump


def test_vgg16_receptive_field():
    convs, pool = [(3, 1)], [(2, 2)]
    layers = 2 * (2 * convs + pool) + 3 * (3 * convs + pool)
    assert receptive_field(layers) == (212, 32)


def test_bad_input_says_the_cure():
    with pytest.raises(FlaxcnnError, match="larger input"):
        conv_output_size(2, 5)
    with pytest.raises(FlaxcnnError, match="odd"):
        same_padding(4)
