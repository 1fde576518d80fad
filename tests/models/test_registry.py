"""Every registered model, and the registry itself."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxcnn
from flaxcnn.errors import FlaxcnnError
from flaxcnn.registry import Info, register

NAMES = [name for name in flaxcnn.list_models() if name != "tiny_bn"]


def init(name, shape=None, **fields):
    model = flaxcnn.create_model(name, **fields)
    x = jnp.zeros((2, *(shape or flaxcnn.model_info(name).input_size)))
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))
    return model, x, variables


def count(variables):
    return sum(p.size for p in jax.tree.leaves(variables["params"]))


@pytest.mark.parametrize("name", NAMES)
def test_exact_number_of_parameters(name):
    _, _, variables = init(name)
    assert count(variables) == flaxcnn.model_info(name).params


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("cnn_a", 856_612), ("strided_cnn_a", 856_612), ("convpool_cnn_a", 1_271_620),
        ("allcnn_a", 1_271_620), ("cnn_b", 902_980), ("strided_cnn_b", 902_980),
        ("convpool_cnn_b", 1_317_988), ("allcnn_b", 1_317_988), ("cnn_c", 972_100),
        ("strided_cnn_c", 972_100), ("convpool_cnn_c", 1_387_108),
        ("allcnn_c", 1_387_108), ("nin", 984_356),
    ],
)  # fmt: skip
def test_parameters_with_100_classes(name, params):
    assert count(init(name, num_classes=100)[2]) == params


@pytest.mark.parametrize("name", NAMES)
def test_shapes(name):
    """Logits, pooled features, endpoints; 1 and 4 channels; another size."""
    for shape, classes in (((32, 32, 1), 10), ((37, 40, 4), 7), ((32, 32, 3), 0)):
        model, x, variables = init(name, shape, num_classes=classes)
        logits, ends = jax.eval_shape(
            lambda v, model=model, x=x: model.apply(v, x, train=False, endpoints=True),
            variables,
        )
        width = classes or ends["pre_logits"].shape[-1]
        assert logits.shape == (2, width)
        assert logits.dtype == jnp.float32
        heights = [end.shape[1] for end in ends.values() if end.ndim == 4]
        assert len(heights) >= 2
        assert heights == sorted(heights, reverse=True)


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_keeps_float32_parameters_and_logits(name):
    model, x, variables = init(name, dtype=jnp.bfloat16)
    assert {p.dtype for p in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    logits, ends = jax.eval_shape(
        lambda v: model.apply(v, x, train=False, endpoints=True), variables
    )
    assert logits.dtype == jnp.float32
    assert ends["block1"].dtype == jnp.bfloat16


@pytest.mark.parametrize("name", ["strided_cnn_a", "nin_lecture"])
def test_every_parameter_has_a_gradient(name):
    model = flaxcnn.create_model(name)
    shape = (4, 20, 20, 3)
    x = jax.random.uniform(jax.random.key(0), shape)

    @jax.jit
    def gradients():
        variables = model.init(jax.random.key(0), x, train=False)
        # Positive biases keep every ReLU alive.
        variables = jax.tree.map(lambda p: p + 0.1 * (p.ndim == 1), variables)
        weights = jax.random.normal(jax.random.key(2), (4, 10))

        def loss(v):
            logits = model.apply(v, x, train=True, rngs={"dropout": jax.random.key(1)})
            return (logits * weights).sum()

        return jax.grad(loss)(variables)

    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients()):
        assert np.isfinite(gradient).all(), path
        assert np.abs(gradient).max() > 0, path


def test_dropout_is_on_in_training_only():
    model = flaxcnn.create_model("allcnn_a")
    x = jax.random.uniform(jax.random.key(0), (1, 16, 16, 3))
    variables = model.init(jax.random.key(0), x, train=False)

    def apply(seed, train):
        rngs = {"dropout": jax.random.key(seed)}
        return np.asarray(model.apply(variables, x, train=train, rngs=rngs))

    assert (apply(1, False) == apply(2, False)).all()
    assert (apply(1, True) != apply(2, True)).any()


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (jnp.zeros((32, 32, 3)), "pass [N, H, W, C] (x[None])"),
        (jnp.zeros((1, 32, 32, 3), jnp.uint8), "input is uint8"),
        (jnp.zeros((1, 8, 32, 3)), "input of 8x32 pixels is too small"),
    ],
)
def test_impossible_input(x, message):
    model = flaxcnn.create_model("allcnn_c")
    with pytest.raises(FlaxcnnError, match="All-CNN") as error:
        model.init(jax.random.key(0), x, train=False)
    assert message in str(error.value)


def test_unknown_names_name_the_nearest():
    with pytest.raises(FlaxcnnError, match=r"'allcnn_d'; did you mean .*allcnn_c"):
        flaxcnn.create_model("allcnn_d")
    with pytest.raises(FlaxcnnError, match=r"'droput'; did you mean .*dropout"):
        flaxcnn.create_model("allcnn_c", droput=0.1)


def test_a_name_cannot_be_taken_twice():
    info = Info(params=0, macs=0, input_size=(1, 1, 1), paper="")
    flaxcnn.create_model("nin")  # registers it
    with pytest.raises(FlaxcnnError, match="'nin' is registered twice"):
        register("nin", info=info)(type(flaxcnn.create_model("nin")))


def test_listing_is_natural_and_needs_no_jax():
    assert flaxcnn.list_models("allcnn*") == ["allcnn_a", "allcnn_b", "allcnn_c"]
    code = "import sys, flaxcnn; flaxcnn.list_models(); print('jax' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.stdout.strip() == "False", out.stderr
