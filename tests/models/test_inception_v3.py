"""Inception v3: what its switches change, and the auxiliary head."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxcnn
from flaxcnn.errors import FlaxcnnError
from flaxcnn.macs import count_macs
from flaxcnn.models.inception_v3 import Inception, InceptionAux, module_a, module_c

SIZE = (299, 299, 3)
WIDTHS = (128, 160, 160, 192)  # of the four 17x17 modules


def size(params):
    return sum(p.size for p in jax.tree.leaves(params))


def shapes(model, shape=(1, *SIZE), train=False):
    """(logits, endpoints) and variables, as shapes."""
    rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    return jax.eval_shape(
        lambda x: model.init_with_output(rngs, x, train=train, endpoints=True),
        jnp.zeros(shape),
    )


def stem():
    """One 7x7 kernel for three of 3x3: (weights, channels normalized, MACs)."""
    first, second, third = 9 * 3 * 32, 9 * 32 * 32, 9 * 32 * 64
    whole = 49 * 3 * 64
    return (
        whole - first - second - third,
        64 - (32 + 32 + 64),
        147**2 * (whole - second - third) - 149**2 * first,
    )


def five():
    """Two 3x3 for a 5x5 from 48 to 64 channels, in three modules."""
    weights = 3 * (9 * 48 * 64 + 9 * 64 * 64 - 25 * 48 * 64)
    return weights, 3 * 64, 35**2 * weights


def seven():
    """7x7 for a 1x7 and a 7x1: three pairs in each of four modules, one in Mixed_7a."""
    pairs = [(c, c, out) for c in WIDTHS for out in (192, c, 192)] + [(192, 192, 192)]
    weights = sum(49 * a * c - 7 * a * b - 7 * b * c for a, b, c in pairs)
    return weights, -sum(b for _, b, _ in pairs), 17**2 * weights


def coarsest():
    """A 3x3 for a 1x3 and a 3x1 in four branches; 768 channels less come out."""
    weights = 4 * (9 * 384 * 384 - 2 * 3 * 384 * 384)
    inputs = -(2048 - 1280) * (320 + 384 + 448 + 192)  # of the 1x1 of Mixed_7c
    fc = -(2048 - 1280) * 1000
    return weights + inputs + fc, -4 * 384, 8**2 * (weights + inputs) + fc


@pytest.mark.parametrize(
    ("fields", "change"),
    [
        ({"factorized_7x7": False}, stem()),
        ({"factorized_5x5": True}, five()),
        ({"factorized_nxn": False}, seven()),
        ({"expanded": False}, coarsest()),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_switch_changes_parameters_and_macs_by_its_kernels(fields, change):
    """And no grid: 35, 17 and 8 pixels stay."""
    weights, channels, macs = change
    info = flaxcnn.model_info("inception_v3")
    model = flaxcnn.create_model("inception_v3", **fields)
    (logits, ends), variables = shapes(model)
    assert size(variables["params"]) - info.params == weights + 2 * channels
    assert count_macs(model, SIZE) - info.macs == macs
    assert logits.shape == (1, 1000)
    grids = [ends[name].shape[1] for name in ("Mixed_5d", "Mixed_6e", "Mixed_7c")]
    assert grids == [35, 17, 8]


def test_both_stems_give_the_same_grid():
    grids = []
    for factorized_7x7 in (True, False):
        model = flaxcnn.create_model("inception_v3", factorized_7x7=factorized_7x7)
        (_, ends), _ = shapes(model, (1, 76, 93, 3))
        grids.append(ends["Conv2d_4a_3x3"].shape)
    assert grids == [(1, 15, 19, 192)] * 2


def fill(module, x, kernels):
    """The module's output with these kernels: the others 0, BatchNorm the identity."""
    init = jax.eval_shape(lambda: module.init(jax.random.key(0), x, train=False))
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), init)
    params = variables["params"]
    for name, kernel in kernels.items():
        assert params[name]["conv"]["kernel"].shape == kernel.shape
        params[name]["conv"]["kernel"] = kernel
        params[name]["bn"]["scale"] += np.sqrt(1e-3)  # of a variance of 0
    return jax.jit(lambda v, x: module.apply(v, x, train=False))(variables, x)


def compose(first, second):
    """The kernel of two convolutions in a row."""
    (h, w, _, _), (i, j, _, _) = first.shape, second.shape
    shape = (h + i - 1, w + j - 1, first.shape[2], second.shape[3])
    both = np.zeros(shape, np.float32)
    for di, dj in np.ndindex(i, j):
        both[di : di + h, dj : dj + w] += first @ second[di, dj]
    return both


def draw(random, *shape):
    """Positive: then no ReLU does anything."""
    return (random.uniform(0.1, 1, shape) / np.prod(shape[:3])).astype(np.float32)


def test_two_3x3_do_what_a_5x5_does():
    random = np.random.default_rng(0)
    x = draw(random, 1, 9, 8, 3)
    first, second = draw(random, 3, 3, 48, 64), draw(random, 3, 3, 64, 64)
    before = {"branch5x5_1": draw(random, 1, 1, 3, 48)}
    factors = {**before, "branch5x5_2": first, "branch5x5_3": second}
    whole = {**before, "branch5x5_2": compose(first, second)}
    factorized = fill(Inception(module_a(32, True)), x, factors)
    expected = fill(Inception(module_a(32, False)), x, whole)
    assert expected.shape == (1, 9, 8, 256)
    assert expected.max() > 0
    # At the border the second 3x3 sees zeros, where the 5x5 sees a part of the image.
    inner = np.s_[:, 1:-1, 1:-1]
    np.testing.assert_allclose(factorized[inner], expected[inner], rtol=1e-4)


def test_1x7_and_7x1_do_what_a_7x7_does():
    c, row, column = 2, (1, 7), (7, 1)
    random = np.random.default_rng(0)
    x = draw(random, 1, 9, 8, 3)
    factors = {f"branch7x7{dbl}_1": draw(random, 1, 1, 3, c) for dbl in ("", "dbl")}
    wholes = dict(factors)
    for name, i, first, second, out in (
        ("branch7x7", 2, row, column, 192),
        ("branch7x7dbl", 2, column, row, c),
        ("branch7x7dbl", 3, column, row, 192),
    ):
        one, other = draw(random, *first, c, c), draw(random, *second, c, out)
        factors[f"{name}_{2 * i - 2}"] = one
        factors[f"{name}_{2 * i - 1}"] = other
        wholes[f"{name}_{i}"] = compose(one, other)
    factorized = fill(Inception(module_c(c, True)), x, factors)
    expected = fill(Inception(module_c(c, False)), x, wholes)
    assert expected.shape == (1, 9, 8, 768)
    assert expected[..., 192:576].min() > 0
    np.testing.assert_allclose(factorized, expected, rtol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("bn_aux", [True, False])
def test_auxiliary_head(bn_aux):
    """It has parameters from the start, logits in training only."""
    model = flaxcnn.create_model(
        "inception_v3", aux_logits=True, bn_aux=bn_aux, dtype=jnp.bfloat16
    )
    (_, ends), variables = shapes(model, (2, *SIZE), train=True)
    head = size(variables["params"]) - flaxcnn.model_info("inception_v3").params
    conv0, conv1, fc = 768 * 128 + 2 * 128, 25 * 128 * 768, 768 * 1000 + 1000
    assert head == conv0 + conv1 + (2 if bn_aux else 1) * 768 + fc
    assert set(variables["batch_stats"]["AuxLogits"]) == (
        {"conv0", "conv1"} if bn_aux else {"conv0"}
    )
    assert ends["aux"].shape == (2, 1000)
    assert ends["aux"].dtype == jnp.float32
    (_, ends), same = shapes(model, (2, *SIZE), train=False)
    assert "aux" not in ends
    assert same == variables


@pytest.mark.long
def test_bn_aux_makes_the_scale_of_its_layer_irrelevant():
    x = np.random.default_rng(0).normal(size=(8, 17, 17, 16)).astype(np.float32)
    changes = {}
    for bn_aux in (True, False):
        head = InceptionAux(10, bn_aux)
        variables = jax.jit(
            lambda head=head: head.init(jax.random.key(1), x, train=False)
        )()

        @jax.jit
        def norm(scale, head=head, variables=variables):
            params = jax.tree.map(lambda p: p, variables["params"])
            params["conv1"]["conv"]["kernel"] *= scale
            logits, _ = head.apply({**variables, "params": params}, x, train=True,
                                   mutable=["batch_stats"])  # fmt: skip
            return jnp.linalg.norm(logits - params["fc"]["bias"])

        changes[bn_aux] = norm(30) / norm(10)  # far above BatchNorm's epsilon
    assert changes == {True: pytest.approx(1, 1e-2), False: pytest.approx(3, 1e-2)}


@pytest.mark.parametrize(
    ("fields", "pixels", "message"),
    [
        ({}, 74, "at least 75x75"),
        ({"aux_logits": True, "num_classes": 0}, 299, "use aux_logits=False"),
    ],
)
def test_impossible(fields, pixels, message):
    with pytest.raises(FlaxcnnError, match=f"Inception v3.*{message}"):
        shapes(flaxcnn.create_model("inception_v3", **fields), (1, pixels, 400, 3))


def train(model, variables, x):
    """The endpoints, as shapes."""
    apply = functools.partial(model.apply, train=True, endpoints=True,
                              mutable=["batch_stats"],
                              rngs={"dropout": jax.random.key(0)})  # fmt: skip
    (_, ends), _ = jax.eval_shape(apply, variables, x)
    return ends


@pytest.mark.parametrize(
    ("size", "kernel"),
    [((299, 299), (5, 5)), ((350, 299), (5, 5)), ((298, 139), (4, 1)),
     ((75, 75), (1, 1))],
)  # fmt: skip
def test_the_auxiliary_head_covers_small_maps(size, kernel):
    model = flaxcnn.create_model("inception_v3", aux_logits=True, num_classes=10)
    x = jnp.zeros((2, *size, 3))
    _, variables = shapes(model, x.shape)
    head = variables["params"]["AuxLogits"]
    assert head["conv1"]["conv"]["kernel"].shape == (*kernel, 128, 768)
    assert train(model, variables, x)["aux"].shape == (2, 10)


def test_an_auxiliary_head_of_other_images():
    model = flaxcnn.create_model("inception_v3", aux_logits=True)
    _, variables = shapes(model)
    with pytest.raises(FlaxcnnError, match=r"kernel of 5x5, and 1x1 .*299x299"):
        train(model, variables, jnp.zeros((1, 75, 75, 3)))


def test_the_auxiliary_head_does_not_limit_evaluation():
    model = flaxcnn.create_model("inception_v3", aux_logits=True)
    _, variables = shapes(model)
    x = jnp.zeros((1, 75, 75, 3))
    logits = jax.eval_shape(lambda v: model.apply(v, x, train=False), variables)
    assert logits.shape == (1, 1000)
