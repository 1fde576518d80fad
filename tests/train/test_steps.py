"""The pure steps against torch, closed forms and each other."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from scipy.special import softmax
from sklearn.metrics import log_loss

import flaxcnn
from flaxcnn.train.model import aux_weights
from flaxcnn.train.state import init_state, init_variables
from flaxcnn.train.steps import make_eval_step, make_train_step, repeat


def jit_train_step(model, tx, **options):
    return jax.jit(make_train_step(model, tx, num_classes=10, **options))


def setup(model="tiny_bn", tx=None, ema=False, **fields):
    model = flaxcnn.create_model(model, **fields)
    tx = optax.with_extra_args_support(tx or optax.sgd(0.1))
    state = init_state(model, tx, jnp.zeros((1, 12, 12, 1)), seed=0, ema=ema)
    return model, tx, state


def make_batch(n=8, seed=0):
    random = np.random.default_rng(seed)
    return {
        "image": jnp.asarray(random.normal(size=(n, 12, 12, 1)), jnp.float32),
        "label": jnp.asarray(random.integers(0, 10, n)),
    }


def assert_close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


@pytest.mark.parametrize("fields", [{}, {"scan_blocks": True}])
def test_variables_are_those_of_init(fields):
    model = flaxcnn.create_model("resnet20_cifar", num_classes=3, **fields)
    x = jnp.zeros((1, 32, 32, 3))
    found = init_variables(model, jax.random.key(5), x)
    expected = jax.jit(model.init, static_argnames="train")(
        jax.random.key(5), x, train=False
    )
    assert_close(found, expected, rtol=1e-6)


def test_loss_and_accuracy_against_torch():
    torch = pytest.importorskip("torch")
    model, tx, state = setup()
    batch = make_batch()
    step = jit_train_step(model, tx, label_smoothing=0.1)
    _, metrics = step(state, batch)
    logits, _ = model.apply(
        state.variables, batch["image"], train=True, mutable=["batch_stats"]
    )
    logits, label = (
        torch.tensor(np.array(logits)),
        torch.tensor(np.array(batch["label"], np.int64)),
    )
    loss = torch.nn.functional.cross_entropy(
        logits, label, label_smoothing=0.1, reduction="sum"
    )
    assert float(metrics["loss"]) == pytest.approx(loss.item(), rel=1e-5)
    assert float(metrics["correct"]) == (logits.argmax(1) == label).sum()
    assert float(metrics["count"]) == 8


def test_auxiliary_heads_count_if_the_model_has_them(debug_config):
    for heads in (True, False):
        config = debug_config("googlenet", model__aux_logits=heads)
        model = flaxcnn.create_model("googlenet", aux_logits=heads)
        expected = {"aux1": 0.3, "aux2": 0.3} if heads else {}
        assert aux_weights(config, model) == expected
    model = flaxcnn.create_model("allconv_mnist")
    assert aux_weights(debug_config("allconv_mnist"), model) == {}


@pytest.mark.parametrize("grad_accum", [1, 4])
def test_auxiliary_heads_add_their_weighted_losses(grad_accum):
    class TwoHeads(nn.Module):
        @nn.compact
        def __call__(self, x, *, train, endpoints=False):
            x = x.mean((1, 2))
            ends = {"aux": nn.Dense(10, name="aux")(x)}
            logits = nn.Dense(10, name="fc")(x)
            return (logits, ends) if endpoints else logits

    batch, model = make_batch(), TwoHeads()
    tx = optax.with_extra_args_support(optax.sgd(0.1))
    state = init_state(model, tx, jnp.zeros((1, 12, 12, 1)), seed=0, ema=False)
    losses, moved = {}, {}
    for weight in (0.0, 0.3):
        step = jit_train_step(
            model, tx, aux_weights={"aux": weight}, grad_accum=grad_accum
        )
        after, metrics = step(state, batch)
        losses[weight] = float(metrics["loss"])
        moved[weight] = jax.tree.map(
            lambda a, b: float(jnp.abs(a - b).max()), after.variables, state.variables
        )["params"]
    _, ends = model.apply(state.variables, batch["image"], train=True, endpoints=True)
    log_p = jax.nn.log_softmax(ends["aux"])
    aux = -np.take_along_axis(np.asarray(log_p), np.asarray(batch["label"])[:, None], 1)
    assert losses[0.3] - losses[0.0] == pytest.approx(0.3 * aux.sum(), rel=1e-5)
    assert moved[0.0]["aux"]["kernel"] == 0 < moved[0.3]["aux"]["kernel"]


def test_a_step_changes_parameters_and_statistics_and_counts():
    model, tx, state = setup()
    new, _ = jit_train_step(model, tx)(state, make_batch())
    assert int(new.step) == 1
    for old_leaf, leaf in zip(
        jax.tree.leaves(state.variables), jax.tree.leaves(new.variables), strict=True
    ):
        assert (np.asarray(old_leaf) != np.asarray(leaf)).any()


def test_accumulated_gradients_equal_those_of_the_whole_batch():
    """With a network without BatchNorm, which would see each micro-batch alone."""
    model, tx, state = setup("strided_cnn_a", input_dropout=0.0, dropout=0.0)
    batch = make_batch()
    whole, m1 = jit_train_step(model, tx)(state, batch)
    parts, m2 = jit_train_step(model, tx, grad_accum=4)(state, batch)
    assert_close(whole.variables, parts.variables, atol=1e-6)
    assert_close(m1, m2, rtol=1e-5)


def test_average_of_parameters_and_statistics():
    model, tx, state = setup(ema=True)
    step = jit_train_step(model, tx, ema=0.9)
    expected = state.variables
    for i in range(3):
        state, _ = step(state, make_batch(seed=i))
        expected = jax.tree.map(
            lambda a, v: 0.9 * a + 0.1 * v, expected, state.variables
        )
    assert_close(state.ema, expected, rtol=1e-5, atol=1e-7)
    assert state.eval_variables is state.ema


def test_random_numbers_follow_from_seed_and_step():
    model, tx, state = setup(dropout=0.5)
    batch = make_batch()

    def loss(seed, step):
        train_step = jit_train_step(model, tx, seed=seed)
        at = state.replace(step=jnp.int32(step))
        return float(train_step(at, batch)[1]["loss"])

    assert loss(0, 0) == loss(0, 0)
    assert loss(0, 0) != loss(0, 1)
    assert loss(0, 0) != loss(1, 0)


def test_evaluation_masks_what_only_fills_up():
    model, _, state = setup()
    batch = make_batch(6)
    evaluate = make_eval_step(model, num_classes=10)
    whole = evaluate(state.variables, {**batch, "mask": jnp.ones(6)})
    padded = jax.tree.map(lambda x: jnp.concatenate([x, x[:2]]), batch)
    mask = jnp.array([1, 1, 1, 1, 1, 1, 0, 0.0])
    masked = evaluate(state.variables, {**padded, "mask": mask})
    assert_close(masked, whole, rtol=1e-6)
    assert float(whole["count"]) == 6


def test_evaluation_with_mirror_images_takes_the_mean_of_both_logits():
    model, _, state = setup()
    batch = make_batch(6)
    found = make_eval_step(model, num_classes=10, flip=True)(
        state.variables, {**batch, "mask": jnp.ones(6)}
    )
    images = np.asarray(batch["image"])
    both = (images, np.flip(images, axis=2))
    each = [model.apply(state.variables, x, train=False) for x in both]
    logits, labels = np.mean(each, axis=0), np.asarray(batch["label"])
    expected = log_loss(labels, softmax(logits, 1), labels=range(10))
    assert float(found["loss"]) / 6 == pytest.approx(expected, rel=1e-5)
    assert float(found["correct"]) == (logits.argmax(1) == labels).sum()


def test_many_steps_in_one_call_equal_single_steps():
    model, tx, state = setup()
    batches = [make_batch(seed=i) for i in range(3)]
    step = jit_train_step(model, tx)
    single, total = state, 0.0
    for batch in batches:
        single, metrics = step(single, batch)
        total += float(metrics["loss"])
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *batches, batches[0])
    many = jax.jit(repeat(step, lambda resident, feed: feed))
    together, metrics = many(state, (), stacked, 3)  # the fourth is not run
    assert int(together.step) == 3
    assert_close(together.variables, single.variables, atol=1e-6)
    assert float(metrics["loss"]) == pytest.approx(total, rel=1e-5)


def test_no_compilation_for_another_count():
    model, tx, state = setup()
    traced = []

    def gather(resident, feed):
        traced.append(feed)
        return feed

    many = jax.jit(repeat(jit_train_step(model, tx), gather))
    feeds = jax.tree.map(lambda x: jnp.stack([x] * 4), make_batch())
    for count in (4, 1, 3):
        state, _ = many(state, (), feeds, count)
    assert int(state.step) == 8
    assert len(traced) <= 2  # once for the loop's shape, once for its body


def test_the_host_decides_nothing_in_a_whole_call():
    """A GPU waits for it at each turn of a loop whose number XLA does not know."""
    model, tx, state = setup()
    feeds = jax.tree.map(lambda x: jnp.stack([x] * 4), make_batch())
    step = jit_train_step(model, tx)
    states, turns = [], []
    for whole in (False, True):
        many = jax.jit(repeat(step, lambda resident, feed: feed, whole))
        program = many.lower(state, (), feeds, 4).compile()
        turns.append(re.findall(r'known_trip_count":{"n":"(\d+)"', program.as_text()))
        states.append(program(state, (), feeds, 4)[0])
    assert "4" not in turns[0]
    assert "4" in turns[1]
    assert_close(states[0].variables, states[1].variables, atol=1e-6)
    assert int(states[1].step) == 4


def test_gradients_of_dropout_free_step_against_float64():
    """One SGD step is minus the rate times the gradient by central differences."""
    model, _, _ = setup()
    batch = make_batch(4)
    with jax.enable_x64(True):
        model = flaxcnn.create_model("tiny_bn", dtype=jnp.float64)
        tx = optax.with_extra_args_support(optax.sgd(1.0))
        state = init_state(model, tx, jnp.zeros((1, 12, 12, 1)), 0, ema=False)
        to64 = lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x  # noqa: E731
        state = state.replace(variables=jax.tree.map(to64, state.variables))
        step = jit_train_step(model, tx)
        new, _ = step(state, batch)

        def loss(delta):
            variables = jax.tree.map(lambda x: x, state.variables)
            bias = variables["params"]["fc"]["bias"]
            variables["params"]["fc"]["bias"] = bias.at[3].add(delta)
            return float(step(state.replace(variables=variables), batch)[1]["loss"]) / 4

        h = 1e-2
        numeric = (loss(h) - loss(-h)) / (2 * h)
        bias = new.variables["params"]["fc"]["bias"][3]
        moved = float(state.variables["params"]["fc"]["bias"][3] - bias)
    assert moved == pytest.approx(numeric, rel=1e-3)
