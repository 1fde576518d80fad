"""Residual blocks and what the family's fields promise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import flaxcnn
from flaxcnn.errors import FlaxcnnError
from flaxcnn.layers.scan import chain_blocks
from flaxcnn.models.resnet import BasicBlock, Bottleneck
from flaxcnn.structure import variable_shapes
from flaxcnn.xla import compiler_options


def count(name, size=None, **fields):
    model = flaxcnn.create_model(name, **fields)
    x = jnp.zeros((1, *(size or flaxcnn.model_info(name).input_size)))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))
    return sum(p.size for p in jax.tree.leaves(shapes["params"]))


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("norm", ["batchnorm", "evonorm_b0"])
@pytest.mark.parametrize(("block", "last"), [(BasicBlock, "bn2"), (Bottleneck, "bn3")])
def test_a_zeroed_last_norm_makes_the_block_the_identity(block, last, norm, train):
    """On non-negative input, of which the ReLU takes nothing away."""
    module = block(4, norm=norm)
    x = jax.random.uniform(jax.random.key(0), (2, 6, 5, 4 * block.expansion))
    variables = module.init(jax.random.key(1), x, train=False)
    zeroed = jax.tree.map(jnp.zeros_like, variables["params"][last])
    params = {**variables["params"], last: zeroed}
    apply = module.apply
    before, _ = apply(variables, x, train=train, mutable=["batch_stats"])
    y, _ = apply(
        {**variables, "params": params}, x, train=train, mutable=["batch_stats"]
    )
    assert not np.allclose(before, x)
    np.testing.assert_array_equal(y, x)


@pytest.mark.parametrize(
    ("n", "option_a", "option_b"),
    [
        (3, 269_722, 272_474), (5, 464_154, 466_906), (7, 658_586, 661_338),
        (9, 853_018, 855_770), (18, 1_727_962, 1_730_714),
    ],
)  # fmt: skip
def test_parameters_of_the_cifar_shortcuts(n, option_a, option_b):
    name = f"resnet{6 * n + 2}_cifar"
    assert count(name) == count(name, shortcut="none") == option_a
    assert count(name, shortcut="B") == option_b


def test_parameters_of_the_imagenet_shortcuts():
    """B adds the projections where the shape changes, C everywhere."""
    projections = sum(c * d + 2 * d for c, d in ((64, 128), (128, 256), (256, 512)))
    assert count("plain18") == count("resnet18", shortcut="A")
    assert count("resnet18") == count("plain18") + projections
    everywhere = projections + sum(
        times * (d * d + 2 * d) for times, d in ((2, 64), (1, 128), (1, 256), (1, 512))
    )
    assert count("resnet18", shortcut="C") == count("plain18") + everywhere


def test_the_notebooks_140_layers():
    stages = (3, 4, 36, 3)
    assert count("resnet152", num_classes=10, stages=stages) == 57_044_042
    assert count("resnet152", num_classes=10) == 58_164_298


def test_option_a_subsamples_and_pads_with_zero_channels():
    """Without its residual branch the block is its shortcut."""
    block = BasicBlock(6, stride=2, shortcut="A")
    x = jax.random.uniform(jax.random.key(0), (1, 5, 4, 3))
    variables = block.init(jax.random.key(1), x, train=False)
    nothing = jax.tree.map(jnp.zeros_like, variables)
    y = block.apply(nothing, x, train=False)
    np.testing.assert_array_equal(y[..., 1:4], x[:, ::2, ::2])
    assert not y[..., [0, 4, 5]].any()


@pytest.mark.long
def test_stride_in_the_1x1_is_less_work():
    """Figure 5: the strided block's 1x1 convolution then sees a quarter of the map."""
    x = jnp.ones((1, 8, 8, 16))
    shapes = []
    for early in (False, True):
        block = Bottleneck(8, stride=2, stride_in_1x1=early)
        _, state = block.init_with_output(
            jax.random.key(0), x, train=False, capture_intermediates=True
        )
        shapes.append(state["intermediates"]["conv1"]["__call__"][0].shape)
        out = block.init_with_output(jax.random.key(0), x, train=False)[0]
        assert out.shape == (1, 4, 4, 32)
    assert shapes == [(1, 8, 8, 8), (1, 4, 4, 8)]


class Chain(nn.Module):
    scan: bool

    @nn.compact
    def __call__(self, x, *, train):
        block, names = functools.partial(BasicBlock, 3), ["a.0", "a.1", "a.2"]
        return chain_blocks(self, block, names, x, train=train, scan=self.scan)


@pytest.mark.parametrize("train", [False, True])
def test_scanned_blocks_equal_called_ones(train):
    x = jax.random.normal(jax.random.key(0), (4, 6, 6, 3))
    results = []
    for scan in (False, True):
        model = Chain(scan)
        variables = model.init(jax.random.key(1), x, train=False)
        variables = jax.tree.map(lambda a: a + 0.1, variables)

        @jax.jit
        def value_and_grad(variables, model=model):
            def loss(params):
                y, updates = model.apply(
                    {**variables, "params": params}, x, train=train,
                    mutable=["batch_stats"],
                )  # fmt: skip
                return (y**2).sum(), (y, updates)

            return jax.grad(loss, has_aux=True)(variables["params"])

        results.append(value_and_grad(variables))
    assert jax.tree.structure(results[0]) == jax.tree.structure(results[1])
    for ours, reference in zip(*map(jax.tree.leaves, results), strict=True):
        scale = np.abs(reference).max()
        np.testing.assert_allclose(ours, reference, rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize("name", ["resnet18", "resnet20_cifar"])
@pytest.mark.parametrize("kind", ["b0", "b1", "b2", "s0", "s1", "s2"])
def test_evonorm_replaces_norm_and_activation(name, kind):
    model = flaxcnn.create_model(name, norm=f"evonorm_{kind}", num_classes=5)
    x = jnp.zeros((2, 32, 32, 3))
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))
    paths = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(variables)
    ]
    statistics = [path for path in paths if path.startswith("batch_stats")]
    assert {path.rsplit("/")[-1] for path in statistics} == (
        {"var"} if kind[0] == "b" else set()
    )
    assert any(path.endswith("bn1/v") for path in paths) == (kind[1] == "0")
    logits = jax.eval_shape(lambda v: model.apply(v, x, train=False), variables)
    assert logits.shape == (2, 5)


def test_a_basic_block_has_no_groups():
    x = jnp.zeros((1, 32, 32, 3))
    for field in ({"groups": 32}, {"base_width": 128}, {"stride_in_1x1": True}):
        model = flaxcnn.create_model("resnet18", **field)
        with pytest.raises(FlaxcnnError, match='set block="bottleneck"'):
            model.init(jax.random.key(0), x, train=False)


def test_unknown_choices():
    x = jnp.zeros((1, 32, 32, 3))
    for field in ("block", "shortcut", "norm"):
        model = flaxcnn.create_model("resnet18", **{field: "batchnrm"})
        with pytest.raises(FlaxcnnError, match=f"ResNet {field} 'batchnrm'"):
            model.init(jax.random.key(0), x, train=False)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("resnet20_cifar", {"n": 1}),
        pytest.param("resnet50", {"stages": (1, 2, 1, 1)}, marks=pytest.mark.long),
        pytest.param("resnet20_cifar", {"scan_blocks": True}, marks=pytest.mark.long),
        pytest.param("resnet20_cifar", {"norm": "evonorm_b0"}, marks=pytest.mark.long),
    ],
)
def test_remat_takes_less_memory_and_changes_nothing(name, fields):
    """Loss, gradients and running statistics, in float64."""

    def make(remat):
        options = {"num_classes": 3, "dtype": jnp.float64, "remat": remat, **fields}
        return flaxcnn.create_model(name, **options)

    def step(remat):
        def loss(params, batch_stats):
            variables = {"params": params, "batch_stats": batch_stats}
            y, updates = make(remat).apply(
                variables, x, train=True, mutable=["batch_stats"]
            )
            return (y**2).sum(), updates

        options = compiler_options()
        compute = jax.jit(
            jax.value_and_grad(loss, has_aux=True), compiler_options=options
        )
        return compute.lower(*given).compile()

    random = np.random.default_rng(0)
    x = random.standard_normal((8, 16, 16, 3))
    with jax.enable_x64(True):
        shapes = variable_shapes(make(False), x.shape[1:])
        variables = jax.tree.map(
            lambda s: random.uniform(0.5, 1, s.shape) / np.sqrt(s.size), shapes
        )
        given = variables["params"], variables["batch_stats"]
        programs = [step(remat) for remat in (False, True)]
        expected, found = (program(*given) for program in programs)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6),
        expected, found,
    )  # fmt: skip
    whole, less = (p.memory_analysis().temp_size_in_bytes for p in programs)
    assert less < 0.9 * whole
