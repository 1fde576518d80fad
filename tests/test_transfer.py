"""Frozen layers and cached features: what they are, what they cost."""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

import flaxcnn
from flaxcnn.errors import FlaxcnnError
from flaxcnn.layers import BatchNorm, Conv, Dropout, EvoNorm, SpatialDropout
from flaxcnn.structure import parameter_shapes, variable_shapes
from flaxcnn.train.state import init_state, split_params
from flaxcnn.train.steps import make_train_step
from flaxcnn.transfer import CachedTrunk, FrozenTrunk, parameter_mask
from tests.models.documented import documented

NAMES = [name for name in flaxcnn.list_models() if name != "tiny_bn"]

# The quickest; all the others take minutes together.
FIRST = {"allconv_mnist", "nin_lecture", "resblocks_resized"}
EVERY = pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n in FIRST else pytest.mark.long) for n in NAMES],
)


def random_variables(model, image_shape, seed=0):
    """He's kernels, and statistics that normalise nothing else than theirs."""
    random = np.random.default_rng(seed)

    def draw(path, shape):
        if len(shape) > 1:
            spread = np.sqrt(2 / np.prod(shape[:-1]))
            return spread * random.standard_normal(shape, np.float32)
        low, high = (0.5, 1.5) if path[-1] in ("scale", "var") else (-0.3, 0.3)
        return random.uniform(low, high, shape).astype(np.float32)

    shapes = flatten_dict(variable_shapes(model, image_shape))
    return unflatten_dict({p: jnp.asarray(draw(p, x.shape)) for p, x in shapes.items()})


def random_images(*shape, seed=0):
    random = np.random.default_rng(seed)
    return jnp.asarray(random.uniform(-1, 1, shape), jnp.float32)


def paths(mask, model, image_shape):
    """The parameters that `split_params` trains with a mask."""
    shapes = parameter_shapes(model, image_shape)
    tree = unflatten_dict(dict.fromkeys(shapes, 0), sep="/")
    return set(flatten_dict(split_params(tree, mask)[0], sep="/"))


def leaves_of(*layers):
    """Those of ResNet's norms and convolutions, and of what has kernel and bias."""
    kinds = {"bn": ("scale", "bias"), "co": ("kernel",)}
    return {
        f"{layer}/{leaf}"
        for layer in layers
        for leaf in kinds.get(layer.rpartition("/")[2][:2], ("kernel", "bias"))
    }


# Masks.


@pytest.mark.parametrize(
    ("name", "words", "expected"),
    [
        ("resnet18", "head", leaves_of("fc")),
        ("resnet18", "last:1", leaves_of("fc")),
        ("resnet18", "last:2", leaves_of("fc", "layer4.1/conv2", "layer4.1/bn2")),
        (
            "resnet18",
            "last:3",
            leaves_of(
                "fc", "layer4.1/conv2", "layer4.1/bn2", "layer4.1/conv1", "layer4.1/bn1"
            ),
        ),
        ("vgg16", "head", leaves_of("classifier.6")),
        ("vgg16", "last:1", leaves_of("classifier.6")),
        (
            "vgg16",
            "last:3",
            {
                "classifier.0/map_kernel", "classifier.0/bias",
                *leaves_of("classifier.3", "classifier.6"),
            },
        ),
        (
            "vgg16",
            "last:4",
            {
                "classifier.0/map_kernel", "classifier.0/bias",
                *leaves_of("classifier.3", "classifier.6", "features.28"),
            },
        ),
    ],
)  # fmt: skip
def test_layers_by_words(name, words, expected):
    model, shape = flaxcnn.create_model(name), flaxcnn.model_info(name).input_size
    assert paths(parameter_mask(words, model, shape), model, shape) == expected


@pytest.mark.long
def test_the_last_layers_of_densenet():
    """Pre-activation: what normalises a convolution's input goes with the one before.

    It is called between the two; norm5 follows the last convolution.
    """
    model, shape = flaxcnn.create_model("densenet121"), (32, 32, 3)
    found = paths(parameter_mask("last:3", model, shape), model, shape)
    modules = {path.rpartition("/")[0].replace("/", ".") for path in found}
    last = "features.denseblock4.denselayer16"
    assert modules == {
        "classifier", "features.norm5", f"{last}.conv2", f"{last}.norm2",
        f"{last}.conv1",
    }  # fmt: skip


def test_all_and_everything_counted():
    model, shape = flaxcnn.create_model("resblocks_resized"), (8, 8, 1)
    everything = set(parameter_shapes(model, shape))
    for words in ("all", "last:7", ".*"):
        assert paths(parameter_mask(words, model, shape), model, shape) == everything


def test_more_layers_than_there_are():
    model = flaxcnn.create_model("resblocks_resized")
    with pytest.raises(
        FlaxcnnError, match="'last:8': the model has 7 layers; say last:7, or all"
    ):
        parameter_mask("last:8", model, (8, 8, 1))


@pytest.mark.parametrize("words", ["(layer4|fc).*", "last:0", "last:", "heads", "("])
def test_what_is_no_word_is_a_regular_expression(words):
    model = flaxcnn.create_model("resblocks_resized")
    assert parameter_mask(words, model, (8, 8, 1)) == words


def test_paths_are_taken_literally():
    """A dot in a name is no wildcard: layer1.0 is not layer1x0."""

    class Dotted(nn.Module):
        num_classes: int = 3

        @nn.compact
        def __call__(self, x, *, train):
            x = nn.Dense(4, name="fcx0")(x.mean((1, 2)))
            return nn.Dense(self.num_classes, name="fc.0")(x)

    mask = parameter_mask("head", Dotted(), (2, 2, 3))
    assert paths(mask, Dotted(), (2, 2, 3)) == {"fc.0/kernel", "fc.0/bias"}


# Frozen layers.


class Dropouts(nn.Module):
    """Every layer has a dropout before it; `ends` is what they returned."""

    num_classes: int = 5

    @nn.compact
    def __call__(self, x, *, train, endpoints=False):
        ends = {}
        x = ends["conv"] = SpatialDropout(0.5)(x + 3, train=train)
        x = Conv(16, (1, 1), name="conv")(x)
        x = BatchNorm(name="bn")(x, train=train) + 9
        x = ends["hidden"] = Dropout(0.5)(x.mean((1, 2)), train=train)
        x = nn.Dense(16, name="hidden")(x)
        x = ends["fc"] = Dropout(0.5)(jnp.abs(x) + 1, train=train)
        x = nn.Dense(self.num_classes, name="fc")(x)
        x = ends["none"] = Dropout(0.5)(jnp.abs(x) + 1, train=train)
        return (x, ends) if endpoints else x


@pytest.mark.parametrize(
    ("trained", "on"),
    [
        ("fc/.*", {"fc"}),
        ("fc/bias", {"fc"}),
        ("(hidden|fc)/.*", {"hidden", "fc"}),
        ("hidden/.*", {"hidden"}),
        ("(conv|fc)/.*", {"conv", "fc"}),
        ("bn/scale", set()),
    ],
)
def test_a_dropout_is_on_if_the_layer_after_it_is_trained(trained, on):
    model, x = Dropouts(), random_images(8, 2, 2, 16)
    network = FrozenTrunk(model, (2, 2, 16), trained)
    variables = random_variables(model, (2, 2, 16))
    (_, ends), _ = network.apply(
        variables, x, train=True, endpoints=True, mutable=["batch_stats"],
        rngs={"dropout": jax.random.key(0)},
    )  # fmt: skip
    assert {key for key, x in ends.items() if (x == 0).any()} == on


@pytest.mark.long
def test_training_the_head_of_vgg_draws_only_the_last_dropout():
    """The trunk as in evaluation; then torch's dropout: zeros, the others doubled."""
    model = flaxcnn.create_model("vgg11", num_classes=5, map_size=1)
    shape = (32, 32, 3)
    head = parameter_mask("head", model, shape)
    variables, x = random_variables(model, shape), random_images(2, *shape)
    _, ends = model.apply(variables, x, train=False, endpoints=True)
    features = np.asarray(ends["pre_logits"])
    assert (features > 0).mean() > 0.2
    seen = []

    def record(call, args, kwargs, context):
        if context.module.name == "classifier.6" and context.method_name == "__call__":
            seen.append(np.asarray(args[0]))
        return call(*args, **kwargs)

    network = FrozenTrunk(model, shape, head)
    with nn.intercept_methods(record):
        for seed in (1, 2):
            rngs = {"dropout": jax.random.key(seed)}
            network.apply(variables, x, train=True, rngs=rngs)
    for dropped in seen:
        kept = dropped != 0
        assert 0.4 < kept[features > 0].mean() < 0.6
        np.testing.assert_allclose(dropped[kept], 2 * features[kept], rtol=1e-5)
    assert (seen[0] != seen[1]).any()


class Normalised(nn.Module):
    """A convolution, a normalisation and a head."""

    norm: nn.Module
    num_classes: int = 5

    @nn.compact
    def __call__(self, x, *, train):
        x = Conv(8, (1, 1), name="conv")(x)
        x = self.norm.copy(name="bn")(x, train=train)
        return nn.Dense(self.num_classes, name="fc")(x.mean((1, 2)))


@pytest.mark.parametrize("norm", [BatchNorm(), EvoNorm("evonorm_b0")], ids=["bn", "b0"])
def test_frozen_norms_use_and_keep_stored_statistics(norm):
    """With the head trained, training mode gives evaluation's logits."""
    model, shape = Normalised(norm), (3, 3, 2)
    variables, x = random_variables(model, shape), random_images(4, *shape)
    trained = parameter_mask("head", model, shape)
    logits, updates = FrozenTrunk(model, shape, trained).apply(
        variables, x, train=True, mutable=["batch_stats"]
    )
    expected = model.apply(variables, x, train=False)
    np.testing.assert_array_equal(logits, expected)
    jax.tree.map(
        np.testing.assert_array_equal, updates["batch_stats"], variables["batch_stats"]
    )
    plain = model.apply(variables, x, train=True, mutable=["batch_stats"])[0]
    assert np.abs(plain - expected).max() > 0.01


def test_a_norm_with_one_trained_parameter_uses_the_batch():
    model, shape = flaxcnn.create_model("resblocks_resized"), (8, 8, 1)
    variables, x = random_variables(model, shape), random_images(4, *shape)
    _, updates = FrozenTrunk(model, shape, "(block2/bn2/bias|fc/.*)").apply(
        variables, x, train=True, mutable=["batch_stats"]
    )
    old = flatten_dict(variables["batch_stats"], sep="/")
    new = flatten_dict(updates["batch_stats"], sep="/")
    moved = {path for path in old if (old[path] != new[path]).any()}
    assert moved == {"block2/bn2/mean", "block2/bn2/var"}


@pytest.mark.parametrize("make", [CachedTrunk, FrozenTrunk])
def test_fused_stages_cannot_be_frozen(make):
    model = flaxcnn.create_model("resnet20_cifar", scan_blocks=True)
    arguments = ["linear/.*"] if make is FrozenTrunk else []
    with pytest.raises(FlaxcnnError, match=r"set config.model.scan_blocks=false"):
        make(model, (32, 32, 3), *arguments)


# Cached features.


def build(name):
    """(model, image shape, variables, images) at about the smallest size."""
    size, channels = max(8, documented(name)[2]), flaxcnn.model_info(name).input_size[2]
    # Random layers of this kind overflow long before the 1202nd.
    fields = {"n": 5, "scan_blocks": False} if name == "resnet1202_cifar" else {}
    model = flaxcnn.create_model(name, num_classes=7, **fields)
    shape = (size, size, channels)
    return model, shape, random_variables(model, shape), random_images(2, *shape)


@EVERY
def test_the_head_on_cached_features_equals_the_whole_network(name):
    model, shape, variables, x = build(name)
    cached = CachedTrunk(model, shape)
    expected = np.asarray(model.apply(variables, x, train=False))
    features = cached.features(variables, x)
    logits = np.asarray(cached.apply(variables, features, train=False))
    assert expected.shape == (2, 7)
    np.testing.assert_allclose(logits, expected, rtol=1e-6, atol=1e-6)
    others = np.asarray(cached.apply(variables, 2 * features + 1, train=False))
    assert np.abs(others - expected).max() > 1e-2, "a constant"


@pytest.mark.parametrize(
    "name",
    [
        "small",
        pytest.param("nin_lecture", marks=pytest.mark.long),
        pytest.param("squeezenet1_1", marks=pytest.mark.long),
    ],
)
def test_cached_features_draw_the_dropout_of_the_network(name):
    if name == "small":
        model, shape = Dropouts(), (2, 2, 16)
        variables, x = random_variables(model, shape), random_images(2, *shape)
    else:
        model, shape, variables, x = build(name)
    cached = CachedTrunk(model, shape)
    frozen = FrozenTrunk(model, shape, parameter_mask("head", model, shape))
    options = {"train": True, "rngs": {"dropout": jax.random.key(1)}}
    features = cached.features(variables, x)
    expected = frozen.apply(variables, x, **options)
    logits = cached.apply(variables, features, **options)
    np.testing.assert_allclose(logits, expected, rtol=1e-6, atol=1e-6)
    evaluated = cached.apply(variables, features, train=False)
    differs = np.abs(np.asarray(logits - evaluated)).max() > 1e-3
    assert differs == (name != "nin_lecture")  # before NiN's head there is none


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("vgg11", (4096,)),
        ("resnet18", (512,)),
        ("nin", (8, 8, 192)),
        ("resblocks_resized", (8, 8, 32)),
    ],
)
def test_features_are_the_input_of_the_head_or_of_its_dropout(name, shape):
    model = flaxcnn.create_model(name)
    cached = CachedTrunk(model, (32, 32, 3))
    variables = variable_shapes(model, (32, 32, 3))
    x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    assert jax.eval_shape(cached.features, variables, x).shape == (2, *shape)


def test_two_heads_have_no_common_features():
    model = flaxcnn.create_model("googlenet", aux_logits=True)
    with pytest.raises(FlaxcnnError) as error:
        CachedTrunk(model, (64, 64, 3))
    assert "has 3 heads" in str(error.value)
    assert "config.model.aux_logits=false" in str(error.value)
    assert "\n" not in str(error.value)


# What it costs.


def state_of(model, trained, shape):
    """A state with Adam's, without values; and the optimizer."""
    tx = optax.with_extra_args_support(optax.adam(1e-3))
    make = functools.partial(init_state, ema=False, trained=trained)
    return jax.eval_shape(lambda: make(model, tx, jnp.zeros((1, *shape)), 0)), tx


def program(model, network, trained, shape, batch):
    """(the compiled step, its state, its batch) on images, or on their features."""
    state, tx = state_of(model, trained, shape)
    state = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), state)
    state = state.replace(variables=random_variables(model, shape))
    x = random_images(batch, *shape)
    if isinstance(network, CachedTrunk):
        spec = jax.eval_shape(network.features, state.variables, x)
        x = random_images(*spec.shape)
    data = {"image": x, "label": jnp.arange(batch) % 10}
    step = make_train_step(network, tx, num_classes=10, trained=trained)
    return jax.jit(step).lower(state, data).compile(), state, data


def programs_of(model, shape, batch=4):
    """Programs by what is trained: all, the last three layers, the head, cached."""
    programs = {"all": program(model, model, ".*", shape, batch)}
    for words in ("last:3", "head"):
        mask = parameter_mask(words, model, shape)
        network = FrozenTrunk(model, shape, mask)
        programs[words] = program(model, network, mask, shape, batch)
    cached = CachedTrunk(model, shape)
    programs["cached"] = program(model, cached, mask, shape, batch)
    return programs


@pytest.mark.long
@pytest.mark.parametrize("n", [1, 3])
def test_frozen_layers_cost_no_backward_pass_and_no_memory(n):
    """6n + 2 layers, a third of whose operations are forward."""
    model, shape = flaxcnn.create_model("resnet20_cifar", n=n), (32, 32, 3)
    compiled = {key: step for key, (step, *_) in programs_of(model, shape).items()}
    flops = {key: step.cost_analysis()["flops"] for key, step in compiled.items()}
    memory = {
        key: step.memory_analysis().temp_size_in_bytes for key, step in compiled.items()
    }
    assert flops["cached"] < 0.02 * flops["all"]
    assert flops["head"] < flops["last:3"] < flops["all"]
    assert flops["head"] <= 0.45 * flops["all"]
    assert memory["cached"] < memory["head"]
    # The order in which XLA frees the forward pass differs by half a map.
    assert memory["head"] < 1.2 * memory["last:3"]
    assert memory["head"] < 0.4 * memory["all"]
    assert memory["last:3"] < 0.4 * memory["all"]  # 8 layers; of 20 layers 0.23

    variables = random_variables(model, shape)
    forward = jax.jit(lambda v, x: model.apply(v, x, train=False))
    analysis = forward.lower(variables, random_images(4, *shape)).compile()
    assert flops["head"] < 1.1 * analysis.cost_analysis()["flops"]


@pytest.mark.parametrize("words", ["head", "last:3", "all"])
def test_the_optimizer_has_state_for_trained_parameters_only(words):
    model, shape = flaxcnn.create_model("resblocks_resized"), (8, 8, 1)
    shapes = parameter_shapes(model, shape)
    trained = parameter_mask(words, model, shape)
    state, _ = state_of(model, trained, shape)
    sizes = [x.size for x in jax.tree.leaves(state.opt_state)]
    chosen = [shapes[path] for path in paths(trained, model, shape)]
    assert sum(sizes) == 1 + 2 * sum(int(np.prod(s)) for s in chosen)
    expected = {"head": 2, "last:3": 10, "all": len(shapes)}  # arrays
    assert len(sizes) == 1 + 2 * expected[words]


def seconds(compiled, state, data):
    started = time.perf_counter()
    jax.block_until_ready(compiled(state, data))
    return time.perf_counter() - started


@pytest.mark.long
def test_training_the_head_is_twice_as_fast_and_cached_ten_times():
    """The best of ten steps, in turns: other programs may run at the same time."""
    model, shape = flaxcnn.create_model("resnet20_cifar"), (32, 32, 3)
    programs = programs_of(model, shape, batch=64)
    rounds = [{key: seconds(*p) for key, p in programs.items()} for _ in range(10)]
    times = {key: min(times[key] for times in rounds) for key in programs}
    assert times["head"] < times["last:3"] < times["all"]
    assert 2 * times["head"] < times["all"]
    assert 10 * times["cached"] < times["all"]
