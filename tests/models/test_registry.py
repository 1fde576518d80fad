"""Every registered model, and the registry itself."""

import json
import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxcnn
from flaxcnn.errors import FlaxcnnError
from flaxcnn.macs import count_macs
from flaxcnn.registry import Info, model_fields, register
from tests.models.documented import documented

NAMES = [name for name in flaxcnn.list_models() if name != "tiny_bn"]

# The quickest; all the others take minutes together.
FIRST = {
    "allcnn_c", "allconv_mnist", "nin", "resblocks_identity", "resnet18",
    "resnet20_cifar", "shufflenet_v2_x0_5", "squeezenet1_1", "vgg16_cifar",
}  # fmt: skip
EVERY = pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n in FIRST else pytest.mark.long) for n in NAMES],
)


def input_shape(name, batch=2, channels=None):
    *size, own = flaxcnn.model_info(name).input_size
    return (batch, *size, channels or own)


def init(name, shape=None, **fields):
    model = flaxcnn.create_model(name, **fields)
    x = jnp.zeros(shape or input_shape(name))
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))
    return model, x, variables


def count(variables):
    return sum(p.size for p in jax.tree.leaves(variables["params"]))


@pytest.mark.parametrize("name", NAMES)
def test_exact_number_of_parameters(name):
    _, _, variables = init(name)
    assert count(variables) == flaxcnn.model_info(name).params


@EVERY
def test_exact_number_of_multiply_adds(name):
    info = flaxcnn.model_info(name)
    assert count_macs(flaxcnn.create_model(name), info.input_size) == info.macs


@pytest.mark.parametrize(
    ("name", "fields", "params"),
    [
        *((name, {"num_classes": 100}, params) for name, params in [
            ("cnn_a", 856_612), ("strided_cnn_a", 856_612),
            ("convpool_cnn_a", 1_271_620), ("allcnn_a", 1_271_620),
            ("cnn_b", 902_980), ("strided_cnn_b", 902_980),
            ("convpool_cnn_b", 1_317_988), ("allcnn_b", 1_317_988),
            ("cnn_c", 972_100), ("strided_cnn_c", 972_100),
            ("convpool_cnn_c", 1_387_108), ("allcnn_c", 1_387_108), ("nin", 984_356),
        ]),
        ("googlenet", {"aux_logits": True}, 13_004_888),
        ("googlenet_paper", {"aux_logits": True}, 13_378_280),
        ("inception_v3", {"aux_logits": True}, 27_161_264),
        ("inception_v4", {"aux_logits": True}, 46_039_280),
    ],
)  # fmt: skip
def test_parameters_with_fields(name, fields, params):
    assert count(init(name, **fields)[2]) == params


@EVERY
@pytest.mark.parametrize(("channels", "classes"), [(1, 0), (4, 7)])
def test_shapes(name, channels, classes):
    """Logits or pooled features, endpoints, and nothing of the batch in them."""
    model, x, variables = init(
        name, input_shape(name, 2, channels), num_classes=classes
    )
    logits, ends = jax.eval_shape(
        lambda v: model.apply(v, x, train=False, endpoints=True), variables
    )
    expected, width, _ = documented(name)
    pooled = ends.pop("pre_logits")
    assert pooled.shape == (2, width or 28 * 28 * channels)
    assert logits.shape == (2, classes or pooled.shape[1])
    assert logits.dtype == jnp.float32
    strides = {
        key: (2 ** round(math.log2(x.shape[1] / end.shape[1])), end.shape[3])
        for key, end in ends.items()
    }
    expected = {key: (s, c or channels) for key, (s, c) in expected.items()}
    assert strides == expected


@EVERY
def test_bfloat16_keeps_float32_parameters_statistics_and_logits(name):
    model, x, variables = init(name, dtype=jnp.bfloat16)
    assert {p.dtype for p in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    (logits, ends), updates = jax.eval_shape(
        lambda v: model.apply(
            v, x, train=True, endpoints=True, mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(0)},
        ),
        variables,
    )  # fmt: skip
    assert {p.dtype for p in jax.tree.leaves(updates)} <= {jnp.dtype("float32")}
    assert logits.dtype == jnp.float32
    assert {end.dtype for end in ends.values() if end.ndim == 4} == {
        jnp.dtype("bfloat16")
    }


@EVERY
def test_float64_is_kept_up_to_the_logits(name):
    with jax.enable_x64(True):
        model, x, variables = init(name, dtype=jnp.float64)
        variables = jax.tree.map(lambda v: v.update(dtype=x.dtype), variables)
        logits, ends = jax.eval_shape(
            lambda v: model.apply(v, x, train=False, endpoints=True), variables
        )
    assert {end.dtype for end in (logits, *ends.values())} == {jnp.dtype("float64")}


def without_gradient(loss, params):
    """Paths of parameters that the loss does not depend on.

    Their gradient is a constant in the program: zero, broadcast.
    """
    program = jax.make_jaxpr(jax.grad(loss))(params).jaxpr
    constants = {
        variable
        for equation in program.eqns
        if equation.primitive.name == "broadcast_in_dim"
        and hasattr(equation.invars[0], "val")
        for variable in equation.outvars
    }
    paths = jax.tree_util.tree_leaves_with_path(params)
    return [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for (path, _), variable in zip(paths, program.outvars, strict=True)
        if hasattr(variable, "val") or variable in constants
    ]


def test_without_gradient_finds_what_has_none():
    def loss(p):
        used = (p["used"] * jnp.ones(3)).sum() + jax.nn.relu(p["rectified"]).sum()
        return used + jax.lax.stop_gradient(p["stopped"]).sum()

    names = ("rectified", "stopped", "unused", "used")
    params = {name: jnp.ones(3) for name in names}
    assert without_gradient(loss, params) == ["stopped", "unused"]


@EVERY
def test_every_parameter_is_connected_to_the_loss(name):
    fields = {"aux_logits": True} if "aux_logits" in model_fields(name) else {}
    model, x, variables = init(name, **fields)
    variables = jax.tree.map(lambda p: jnp.zeros(p.shape, p.dtype), variables)

    def loss(params):
        (logits, ends), _ = model.apply(
            {**variables, "params": params}, x, train=True, endpoints=True,
            mutable=["batch_stats"], rngs={"dropout": jax.random.key(1)},
        )  # fmt: skip
        heads = [logits, *(ends[head] for head in ends if head.startswith("aux"))]
        return sum((head**2).sum() for head in heads)

    assert without_gradient(loss, variables["params"]) == []


@pytest.mark.parametrize(
    "name",
    [
        "strided_cnn_a",
        *(
            pytest.param(name, marks=pytest.mark.long)
            for name in (
                "nin_lecture", "resnet18", "resnet20_cifar", "shufflenet_v2_x0_5",
                "squeezenet1_1", "vgg16_cifar",
            )
        ),
    ],
)  # fmt: skip
def test_every_gradient_is_a_number_and_not_zero(name):
    model = flaxcnn.create_model(name, num_classes=10)
    size = max(40, documented(name)[2])
    x = jax.random.uniform(jax.random.key(0), (4, size, size, 3))
    variables = model.lazy_init(
        jax.random.key(0), jax.ShapeDtypeStruct(x.shape, x.dtype), train=False
    )
    # Positive biases keep every ReLU alive.
    variables = jax.tree.map(lambda p: p + 0.1 * (p.ndim == 1), variables)
    weights = jax.random.normal(jax.random.key(2), (4, 10))

    @jax.jit
    def gradients(variables):
        def loss(params):
            logits, _ = model.apply(
                {**variables, "params": params}, x, train=True,
                mutable=["batch_stats"], rngs={"dropout": jax.random.key(1)},
            )  # fmt: skip
            return (logits * weights).sum()

        return jax.grad(loss)(variables["params"])

    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients(variables)):
        assert np.isfinite(gradient).all(), path
        assert np.abs(gradient).max() > 0, path


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(FIRST))
def test_bfloat16_is_close_to_float32(name):
    model = flaxcnn.create_model(name)
    x = jax.random.uniform(jax.random.key(0), input_shape(name))
    variables = model.lazy_init(
        jax.random.key(1), jax.ShapeDtypeStruct(x.shape, x.dtype), train=False
    )
    logits, half = (
        np.asarray(jax.jit(lambda v, m=m: m.apply(v, x, train=False))(variables))
        for m in (model, model.clone(dtype=jnp.bfloat16))
    )
    assert 0 < np.linalg.norm(half - logits) < 0.03 * np.linalg.norm(logits)


@EVERY
def test_the_smallest_input(name):
    """It works; a pixel less is one line that says what to do."""
    smallest = documented(name)[2]
    channels = flaxcnn.model_info(name).input_size[2]
    _, _, variables = init(name, (1, smallest, smallest, channels))
    if not name.startswith("resblocks"):  # the only ones with a size of their own
        assert count(variables) == flaxcnn.model_info(name).params
    if smallest > 1:
        message = f"too small; resize it to at least {smallest}x{smallest}"
        with pytest.raises(FlaxcnnError, match=message):
            init(name, (1, smallest, smallest - 1, channels))


@pytest.mark.parametrize("name", NAMES)
def test_fields_survive_json(name):
    """As the config and the file of a trained model keep them."""
    fields = {field: value for field, (_, value) in model_fields(name).items()}
    kept = json.loads(json.dumps(fields))
    assert flaxcnn.create_model(name, **kept) == flaxcnn.create_model(name)


def test_info_has_the_published_weights():
    info = flaxcnn.model_info("resnet50")
    assert [weights.version for weights in info.weights] == ["V2", "V1"]
    assert info.weights[0].file == "resnet50-11ad3fa6.pth"
    assert info.weights[0].top1 == 0.80858
    assert flaxcnn.model_info("nin").weights == ()
    assert flaxcnn.model_info("googlenet").aux_weights == {"aux1": 0.3, "aux2": 0.3}


def test_dropout_is_on_in_training_only():
    model = flaxcnn.create_model("allcnn_a")
    x = jax.random.uniform(jax.random.key(0), (1, 16, 16, 3))
    variables = model.lazy_init(jax.random.key(0), x, train=False)
    jitted = jax.jit(model.apply, static_argnames="train")

    def apply(seed, train):
        rngs = {"dropout": jax.random.key(seed)}
        return np.asarray(jitted(variables, x, train=train, rngs=rngs))

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


def test_a_name_of_the_library_cannot_be_taken_before_it_is_used():
    code = """
import flaxcnn
from flax import linen as nn

info = flaxcnn.Info(params=0, macs=0, paper="")
try:
    @flaxcnn.register("vgg16", info=info)
    class Mine(nn.Module):
        pass
except flaxcnn.FlaxcnnError as error:
    print(error)
flaxcnn.create_model("vgg11")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == (
        "model 'vgg16' is registered twice, by flaxcnn.models.vgg and __main__; "
        "rename one of them\n"
    ), done.stderr
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("classes", [True, -1, 2.0, "10"])
def test_what_is_no_number_of_classes(classes):
    with pytest.raises(FlaxcnnError, match="is no number of classes"):
        flaxcnn.create_model("nin", num_classes=classes)
    assert flaxcnn.create_model("nin", num_classes=np.int64(7)).num_classes == 7


def test_listing_is_natural_and_needs_no_jax():
    assert flaxcnn.list_models("resnet*")[:5] == [
        "resnet18", "resnet20_cifar", "resnet32_cifar", "resnet34", "resnet44_cifar"
    ]  # fmt: skip
    code = "import sys, flaxcnn; flaxcnn.list_models(); print('jax' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.stdout.strip() == "False", out.stderr
