"""Conversion of state_dicts: the rule, and what it refuses."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxcnn
from flaxcnn.errors import FlaxcnnError
from flaxcnn.weights import from_torch, to_torch


@pytest.fixture
def state():
    """A state_dict of resblocks_resized, of numpy arrays."""
    random = np.random.default_rng(0)
    shapes = {"fc.weight": (10, 7 * 7 * 32), "fc.bias": (10,)}
    for block, (c, inner, out) in {"block1": (1, 4, 8), "block2": (8, 16, 32)}.items():
        for number, (i, o, k) in {
            "1": (c, inner, 3), "2": (inner, out, 1), "_shortcut": (c, out, 1),
        }.items():  # fmt: skip
            shapes[f"{block}.conv{number}.weight"] = (o, i, k, k)
            shapes[f"{block}.conv{number}.bias"] = (o,)
            for leaf in ("weight", "bias", "running_mean", "running_var"):
                shapes[f"{block}.bn{number}.{leaf}"] = (o,)
    arrays = {key: random.random(s, np.float32) for key, s in shapes.items()}
    return {**arrays, "block1.bn1.num_batches_tracked": np.int64(7)}


def test_layouts(state):
    variables = from_torch("resblocks_resized", state)
    params, stats = variables["params"], variables["batch_stats"]
    kernel = params["block1"]["conv1"]["kernel"]  # [H, W, in, out]
    assert kernel[2, 1, 0, 3] == state["block1.conv1.weight"][3, 0, 2, 1]
    dense = params["fc"]["map_kernel"]  # torch flattens channels first
    assert dense[5, 6, 31, 9] == state["fc.weight"][9, 31 * 49 + 5 * 7 + 6]
    var = stats["block2"]["bn_shortcut"]["var"]
    np.testing.assert_array_equal(var, state["block2.bn_shortcut.running_var"])


def test_what_comes_back_is_what_was_given(state):
    back = to_torch("resblocks_resized", from_torch("resblocks_resized", state))
    assert back.keys() == state.keys() - {"block1.bn1.num_batches_tracked"}
    for key, array in back.items():
        np.testing.assert_array_equal(array, state[key])


def test_everything_wrong_is_listed(state):
    del state["fc.bias"]
    state["head.weight"] = np.zeros(3)
    state["block1.conv1.weight"] = np.zeros((4, 3, 3, 3))
    with pytest.raises(FlaxcnnError) as error:
        from_torch("resblocks_resized", state)
    for part in (
        "missing fc.bias",
        "unexpected head.weight",
        "block1.conv1.weight has shape (4, 3, 3, 3), not (4, 1, 3, 3)",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize("given", [[], None, "weights", np.zeros(3)])
def test_what_is_no_state_dict(given):
    """Such as the network itself."""
    with pytest.raises(FlaxcnnError, match=r"no state_dict; give model\.state_dict"):
        from_torch("resblocks_resized", given)


def test_the_way_back_is_as_strict(state):
    variables = from_torch("resblocks_resized", state)
    del variables["batch_stats"]["block1"]["bn1"]["mean"]
    variables["params"]["head"] = {"bias": np.zeros(3)}
    variables["params"]["fc"]["bias"] = np.float32([np.nan] * 10)
    with pytest.raises(FlaxcnnError) as error:
        to_torch("resblocks_resized", variables)
    for part in (
        "missing block1.bn1.running_mean", "unexpected head.bias",
        "fc.bias has values that are not finite",
    ):  # fmt: skip
        assert part in str(error.value)
    with pytest.raises(FlaxcnnError, match=r"fc.bias has shape \(10,\), not \(3,\)"):
        to_torch("resblocks_resized", variables, num_classes=3)


def test_another_number_of_classes(state):
    state["fc.weight"], state["fc.bias"] = np.zeros((3, 7 * 7 * 32)), np.zeros(3)
    with pytest.raises(FlaxcnnError, match=r"fc.weight has shape \(3, 1568\), not"):
        from_torch("resblocks_resized", state)
    assert from_torch("resblocks_resized", state, num_classes=3)


def test_a_copy_is_made(state):
    variables = from_torch("resblocks_resized", state)
    state["fc.bias"] += 1
    assert not np.array_equal(variables["params"]["fc"]["bias"], state["fc.bias"])


def test_wrappings_of_checkpoints(state):
    plain = from_torch("resblocks_resized", state)
    wrapped = {f"module.{key}": array for key, array in state.items()}
    checkpoint = {"epoch": 3, "state_dict": wrapped}
    for given in (wrapped, checkpoint):
        again = from_torch("resblocks_resized", given)
        jax.tree.map(np.testing.assert_array_equal, plain, again)


def test_a_key_that_comes_twice(state):
    state = {**state, "module.fc.bias": state["fc.bias"] + 1}
    with pytest.raises(
        FlaxcnnError, match=r"fc\.bias twice, once as 'module\.fc\.bias'"
    ):
        from_torch("resblocks_resized", state)


def test_complex_numbers_are_no_weights(state):
    state["fc.bias"] = state["fc.bias"] + 1j
    with pytest.raises(FlaxcnnError, match=r"fc\.bias is no array of numbers"):
        from_torch("resblocks_resized", state)


def test_old_keys_of_densenet():
    """As the published files have them: denselayer1.norm.1, not denselayer1.norm1."""
    variables = random_variables("densenet121")
    new = to_torch("densenet121", variables)
    old = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", key): array
        for key, array in new.items()
    }
    assert old.keys() != new.keys()
    again = from_torch("densenet121", old)
    jax.tree.map(np.testing.assert_array_equal, variables, again)


def test_auxiliary_heads_are_left_out_unless_asked_for():
    """torchvision's GoogLeNet file has them."""
    everything = random_variables("googlenet", aux_logits=True)
    state = to_torch("googlenet", everything, aux_logits=True)
    assert any(key.startswith("aux1.") for key in state)
    again = from_torch("googlenet", state, aux_logits=True)
    jax.tree.map(np.testing.assert_array_equal, everything, again)
    without = from_torch("googlenet", state)
    assert everything["params"].keys() - without["params"].keys() == {"aux1", "aux2"}


def random_variables(name, **fields):
    model = flaxcnn.create_model(name, **fields)
    x = jnp.zeros((1, *flaxcnn.model_info(name).input_size))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))
    random = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: random.random(leaf.shape, np.float32), shapes)
