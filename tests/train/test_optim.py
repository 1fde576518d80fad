"""Optimizers against torch.optim, schedules against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxcnn.errors import FlaxcnnError
from flaxcnn.train.config import Durations, default_config
from flaxcnn.train.optim import check_mask, make_optimizer, make_schedule

DURATIONS = Durations(examples=100, batch_size=10)  # 10 steps an epoch


def optim(**values):
    config = default_config().optim
    config.lr = 0.5
    config.momentum = 0.9
    if values.get("name", "sgd") not in ("sgd", "rmsprop"):
        del config.momentum
    config.update(values)
    return config


def rates(total, **values):
    schedule = make_schedule(optim(**values), DURATIONS, total)
    return np.array([schedule(step) for step in range(total)])


def test_step_schedule():
    lr = rates(60, schedule="step", milestones=(2, "40 steps"), gamma=0.1)
    expected = np.repeat([0.5, 0.05, 0.005], [20, 20, 20])
    np.testing.assert_allclose(lr, expected, rtol=1e-6)


def test_warmup_is_linear_and_does_not_move_the_milestones():
    lr = rates(40, schedule="step", milestones=(2,), warmup="1 epoch")
    np.testing.assert_allclose(lr[:10], 0.5 * np.arange(10) / 10, rtol=1e-6)
    np.testing.assert_allclose(lr[10:], np.repeat([0.5, 0.05], [10, 20]), rtol=1e-6)


def test_cosine_linear_exponential():
    t = np.arange(50)
    cosine = 0.25 * (1 + np.cos(np.pi * t / 50))
    np.testing.assert_allclose(rates(50, schedule="cosine"), cosine, atol=1e-6)
    linear = 0.5 * (1 - t / 50)
    np.testing.assert_allclose(rates(50, schedule="linear"), linear, atol=1e-6)
    exponential = 0.5 * 0.9 ** (t / 10)
    lr = rates(50, schedule="exponential", gamma=0.9)
    np.testing.assert_allclose(lr, exponential, rtol=1e-5)


def test_onecycle_against_torch():
    torch = pytest.importorskip("torch")
    parameter = torch.nn.Parameter(torch.zeros(1))
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        torch.optim.SGD([parameter], 0.5), 0.5, 1000, cycle_momentum=False
    )
    expected = []
    for _ in range(1000):
        expected.append(cycle.get_last_lr()[0])
        cycle.optimizer.step()
        cycle.step()
    # torch reaches the peak and the end one step earlier.
    lr = rates(1000, schedule="onecycle")
    np.testing.assert_allclose(lr, expected, atol=0.005 * 0.5)


def test_plateau_lowers_the_rate_after_patience():
    """A constant loss: after the first epoch, 2 of patience, then a tenth."""
    values = dict(schedule="plateau", patience="2 epochs", momentum=0.0)
    tx = make_optimizer(optim(**values), DURATIONS, 100)
    params = {"kernel": jnp.ones(3)}
    state, sizes = tx.init(params), []
    for _ in range(60):
        updates, state = tx.update(params, state, params, value=jnp.float32(1))
        sizes.append(-float(updates["kernel"][0]))
    rates, starts = np.unique(np.round(sizes, 7), return_index=True)
    np.testing.assert_allclose(rates[::-1][:2], [0.5, 0.05], rtol=1e-5)
    drop = starts[::-1][1]
    assert 20 <= drop <= 40


@pytest.mark.parametrize(
    ("values", "make"),
    [
        (dict(name="sgd", weight_decay=0.1),
         lambda t, p: t.optim.SGD(p, 0.5, momentum=0.9, weight_decay=0.1)),
        (dict(name="sgd", nesterov=True),
         lambda t, p: t.optim.SGD(p, 0.5, momentum=0.9, nesterov=True)),
        (dict(name="adam", weight_decay=0.1),
         lambda t, p: t.optim.Adam(p, 0.5, weight_decay=0.1)),
        (dict(name="adamw", weight_decay=0.1),
         lambda t, p: t.optim.AdamW(p, 0.5, weight_decay=0.1)),
    ],
)  # fmt: skip
def test_updates_equal_those_of_torch(values, make):
    torch = pytest.importorskip("torch")
    start = np.linspace(-1, 1, 6, dtype=np.float32)
    parameter = torch.nn.Parameter(torch.from_numpy(start.copy()))
    reference = make(torch, [parameter])
    tx = make_optimizer(optim(**values), DURATIONS, 100)
    params = {"layer": {"kernel": jnp.array(start)}}
    state = tx.init(params)
    for step in range(5):
        gradient = np.sin(start + step).astype(np.float32)
        parameter.grad = torch.from_numpy(gradient)
        reference.step()
        grads = {"layer": {"kernel": jnp.array(gradient)}}
        updates, state = tx.update(grads, state, params, value=jnp.float32(0))
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(
        params["layer"]["kernel"], parameter.detach().numpy(), rtol=1e-4
    )


def updates_of(values, params, grads, factors=()):
    tx = make_optimizer(optim(**values), DURATIONS, 100, factors)
    return tx.update(grads, tx.init(params), params, value=jnp.float32(0))[0]


PARAMS = {
    "conv": {"kernel": jnp.ones(2), "bias": jnp.ones(2)},
    "fc": {"bias": jnp.ones(2)},
}
ZEROS = jax.tree.map(jnp.zeros_like, PARAMS)


def test_decay_mask():
    updates = updates_of(dict(weight_decay=0.1), PARAMS, ZEROS)
    np.testing.assert_allclose(updates["conv"]["kernel"], -0.05)
    np.testing.assert_array_equal(updates["conv"]["bias"], 0)
    everything = updates_of(dict(weight_decay=0.1, decay_mask=".*"), PARAMS, ZEROS)
    np.testing.assert_allclose(everything["fc"]["bias"], -0.05)


@pytest.mark.parametrize("name", ["adamw", "lars", "novograd", "madgrad"])
def test_decay_mask_holds_for_any_optimizer(name):
    """Also for those whose own decay takes no mask."""
    updates = updates_of(dict(name=name, weight_decay=0.1), PARAMS, ZEROS)
    assert (updates["conv"]["kernel"] < 0).all()
    assert not updates["conv"]["bias"].any()
    none = updates_of(dict(name=name, decay_mask="["), PARAMS, ZEROS)
    assert not any(x.any() for x in jax.tree.leaves(none))


def test_factors_scale_the_learning_rate_of_the_first_mask_that_matches():
    factors = [("fc/.*", 1.0), (".*kernel", 0.1), (".*", 0.01)]
    for name in ("sgd", "adam"):
        base = updates_of(dict(name=name), PARAMS, PARAMS)
        updates = updates_of(dict(name=name), PARAMS, PARAMS, factors)
        for path, factor in {("conv", "kernel"): 0.1, ("conv", "bias"): 0.01,
                             ("fc", "bias"): 1.0}.items():  # fmt: skip
            (module, leaf) = path
            np.testing.assert_allclose(
                updates[module][leaf], factor * base[module][leaf], rtol=1e-6
            )


def test_clip():
    updates = updates_of(dict(clip=1.0, momentum=0.0), PARAMS, PARAMS)
    assert np.sqrt(
        sum((x**2).sum() for x in jax.tree.leaves(updates))
    ) == pytest.approx(0.5, rel=1e-5)


@pytest.mark.parametrize("name", ["rmsprop", "lion", "nadam", "muon", "prodigy"])
def test_other_optimizers_by_name(name):
    params = {"layer": {"kernel": jnp.ones((3, 3))}}
    updates = updates_of(dict(name=name, weight_decay=0.01), params, params)
    assert float(updates["layer"]["kernel"].mean()) < 0


def test_muon_orthogonalises_convolutions():
    """By Newton-Schulz: singular values of 0.7 to 1.2, times lr."""
    random = np.random.default_rng(0)
    gradients = {"conv": {
        "kernel": random.normal(size=(3, 3, 4, 16)).astype("float32"),
        "bias": random.normal(size=16).astype("float32"),
    }}  # fmt: skip
    updates = updates_of(dict(name="muon"), gradients, gradients)["conv"]
    values = np.linalg.svd(updates["kernel"].reshape(36, 16), compute_uv=False)
    assert 0.5 * 0.65 < values.min() < values.max() < 0.5 * 1.25
    # Vectors are Nadam's, whose first step does not see their size.
    nadam = -0.5 * (1 + 0.9 * 0.1 / (1 - 0.9**2)) * np.sign(gradients["conv"]["bias"])
    np.testing.assert_allclose(updates["bias"], nadam, rtol=1e-4)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (
            "kernels",
            "config.optim.decay_mask='kernels' matches no parameter; there are",
        ),
        ("(", "config.optim.decay_mask='(' is no regular expression"),
    ],
)
def test_masks_that_cannot_be_meant(mask, message):
    with pytest.raises(FlaxcnnError) as error:
        check_mask(f"config.optim.decay_mask={mask!r}", mask, PARAMS)
    assert message in str(error.value)
    check_mask("decay_mask", ".*kernel", PARAMS)


def test_a_warmup_longer_than_the_run():
    with pytest.raises(FlaxcnnError, match="is 200 steps, the whole run 100"):
        make_schedule(optim(warmup="20 epochs"), DURATIONS, 100)
