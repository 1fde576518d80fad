"""Networks and layers that torchvision lacks, against timm, with random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import timm
import torch
from timm.layers import evo_norm
from torchvision.models.inception import InceptionAux

import flaxcnn
from flaxcnn.layers import EvoNorm
from flaxcnn.models import inception_v3
from flaxcnn.weights import from_torch, to_torch
from tests.parity.reference import (
    channels_first,
    compare_evaluation,
    compare_gradients,
    compare_training,
    images,
    randomize,
    relative,
)

# Our endpoints that bear no name of a timm module.
MODULES = {
    "inception_v4": {
        "stem": "features.5",
        "inception_a": "features.9",
        "reduction_a": "features.10",
        "inception_b": "features.17",
        "reduction_b": "features.18",
        "inception_c": "features.21",
    },
    "inception_resnet_v2": {"stem": "maxpool_5a"},
}


def network(name, bias=0.0):
    torch.manual_seed(0)
    return randomize(timm.create_model(name), bias)


@pytest.mark.long
@pytest.mark.parametrize("name", MODULES)
def test_names_and_multiply_adds(name):
    net = timm.create_model(name)
    state = net.state_dict()
    ours = to_torch(name, from_torch(name, state))
    assert ours.keys() == {key for key in state if "num_batches" not in key}
    for key, array in ours.items():
        np.testing.assert_array_equal(array, state[key], err_msg=key)

    macs = []

    def count(module, args, output):
        macs.append(output.numel() * module.weight[0].numel())

    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            module.register_forward_hook(count)
    net.to("meta").eval()(torch.zeros(1, 3, 299, 299, device="meta"))
    assert sum(macs) == flaxcnn.model_info(name).macs


@pytest.mark.long
@pytest.mark.parametrize("size", [(299, 299), (230, 197)])
@pytest.mark.parametrize("name", MODULES)
def test_evaluation(name, size):
    compare_evaluation(name, network(name), images(*size), MODULES[name])


@pytest.mark.long
@pytest.mark.parametrize("name", MODULES)
def test_training(name):
    # With half of the ReLUs shut, Inception-v4's depth and statistics of a few values
    # make 1e-3 of float32's rounding (and 1e-8 of float64's).
    compare_training(name, network(name, bias=1.0), images(139, 139, batch=2))


@pytest.mark.long
@pytest.mark.parametrize("name", MODULES)
def test_gradients(name):
    compare_gradients(name, network(name), images(107, 107, batch=2))


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "width"), [("inception_v4", 1024), ("inception_resnet_v2", 1088)]
)
def test_auxiliary_head(name, width):
    """timm has none; it is that of torchvision's Inception v3 on other features."""
    head = randomize(InceptionAux(width, 1000)).eval()
    state = timm.create_model(name).state_dict()
    state |= {f"AuxLogits.{key}": value for key, value in head.state_dict().items()}
    variables = from_torch(name, state, aux_logits=True)
    variables = {kind: tree["AuxLogits"] for kind, tree in variables.items()}
    x = np.random.default_rng(0).uniform(0, 1, (2, 17, 23, width)).astype("f4")
    ours = inception_v3.InceptionAux(1000).apply(variables, x, train=False)
    assert relative(ours, head(channels_first(x))) < 1e-5


@pytest.mark.parametrize("nonlinearity", [True, False])
@pytest.mark.parametrize("kind", ["b0", "b1", "b2", "s0", "s1", "s2"])
def test_evonorm(kind, nonlinearity):
    """Outputs, running variance and gradients: two steps of training, evaluation."""
    random = np.random.default_rng(0)
    theirs = getattr(evo_norm, f"EvoNorm2d{kind.upper()}")(64, apply_act=nonlinearity)
    for parameter in theirs.parameters():
        parameter.data = torch.tensor(random.uniform(-2, 2, 64).astype("f4"))
    ours = EvoNorm(f"evonorm_{kind}", nonlinearity)
    state = {key: jnp.asarray(p.detach().numpy().copy())
             for key, p in theirs.named_parameters()}  # fmt: skip
    names = {"weight": "scale", "bias": "bias", "v": "v"}
    params = {names[key]: p for key, p in state.items()}
    x = jnp.asarray(random.normal(0.3, 1.5, (4, 5, 6, 64)), jnp.float32)
    variables = ours.init(jax.random.key(0), x, train=True)
    assert jax.tree.map(jnp.shape, variables["params"]) == dict.fromkeys(params, (64,))
    stats = variables.get("batch_stats", {})
    assert bool(stats) == (kind in ("b0", "b1", "b2") and nonlinearity)

    for train in (True, True, False):
        x = jnp.asarray(random.normal(0.3, 1.5, x.shape), jnp.float32)
        g = jnp.asarray(random.normal(size=x.shape), jnp.float32)

        def apply(params, x, stats=stats, train=train):
            variables = {"params": params, "batch_stats": stats}
            return ours.apply(variables, x, train=train, mutable=["batch_stats"])

        y, pull, updates = jax.vjp(apply, params, x, has_aux=True)
        gradients, dx = pull(g)
        theirs.train(train).zero_grad()
        reference_x = channels_first(x).requires_grad_()
        reference_y = theirs(reference_x)
        reference_y.backward(channels_first(g))
        assert relative(y, reference_y) < 1e-6
        assert relative(dx, reference_x.grad) < 1e-5
        for key, parameter in theirs.named_parameters():
            assert relative(gradients[names[key]], parameter.grad) < 1e-5
        if stats:
            stats = updates["batch_stats"]
            assert relative(stats["var"], theirs.running_var) < 1e-6
