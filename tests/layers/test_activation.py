"""ReLU and ReLU6 against torch, and what their gradients need."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxcnn.layers import relu, relu6

POINTS = [-np.inf, -2.5, -0.0, 0.0, 1e-30, 0.5, 5.75, 6.0, 6.25, np.inf]


@pytest.mark.parametrize("ours", [relu, relu6])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_against_torch(ours, dtype):
    torch = pytest.importorskip("torch")
    x, g = jnp.asarray(POINTS, dtype), jnp.arange(1, len(POINTS) + 1).astype(dtype)
    y, pull = jax.vjp(ours, x)
    (dx,) = pull(g)
    assert y.dtype == dx.dtype == x.dtype
    np.testing.assert_array_equal(jax.jvp(ours, (x,), (g,))[1], dx)  # its own transpose
    tx = torch.tensor(POINTS, dtype=getattr(torch, dtype)).requires_grad_()
    ty = getattr(torch.nn.functional, ours.__name__)(tx)
    ty.backward(torch.arange(1, len(POINTS) + 1).to(tx.dtype))
    np.testing.assert_array_equal(y.astype("f4"), ty.detach().float())
    np.testing.assert_array_equal(dx.astype("f4"), tx.grad.float())


@pytest.mark.parametrize("ours", [relu, relu6])
def test_only_the_activation_uses_its_input(ours):
    def gradient(x, g):
        return jax.vjp(ours, 2 * x)[1](g)

    jaxpr = jax.make_jaxpr(gradient)(jnp.ones(3), jnp.ones(3)).jaxpr
    (before,) = (e.outvars[0] for e in jaxpr.eqns if e.primitive.name == "mul")
    users = [e for e in jaxpr.eqns if any(v is before for v in e.invars)]
    assert len(users) == 1
