"""fold_batchnorm: the same logits, and no BatchNorm left that need not be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict

import flaxcnn
from flaxcnn.layers import BatchNorm, Conv, MapDense, relu


def shaken(model, shape):
    """Variables, all random."""
    x = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    shapes = jax.eval_shape(
        lambda k, x: model.init(k, x, train=False), jax.random.key(0), x
    )
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        name, noise = path[-1].key, rng.standard_normal(leaf.shape).astype("f4")
        if name in ("scale", "var"):
            return np.exp(0.2 * noise)
        if name in ("bias", "mean"):
            return 0.2 * noise
        return noise * np.sqrt(2 / np.prod(leaf.shape[:-1]))

    return jax.tree_util.tree_map_with_path(draw, shapes)


def norms(variables):
    """(BatchNorms with statistics, folded ones)."""
    names = [path[-1] for path in flatten_dict(variables)]
    return names.count("mean"), names.count("folded_bias")


def images(*shape):
    return np.random.default_rng(1).standard_normal(shape).astype("f4")


def assert_close(a, b, tolerance):
    assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


def check(model, shape, folded_count, kept=0, tolerance=1e-4):
    variables, x = shaken(model, shape), images(2, *shape)
    folded = flaxcnn.fold_batchnorm(model, variables, shape)
    assert norms(variables) == (folded_count + kept, 0)
    assert norms(folded) == (kept, folded_count)
    forward = jax.jit(lambda variables: model.apply(variables, x, train=False))
    assert_close(forward(folded), forward(variables), tolerance)
    return variables, folded


@pytest.mark.parametrize(
    ("name", "size", "folded", "kept"),
    [
        ("resnet20_cifar", 8, 19, 0),  # its shortcuts are without parameters
        pytest.param("resnet18", 32, 20, 0, marks=pytest.mark.long),
        pytest.param("resnet50", 32, 53, 0, marks=pytest.mark.long),
        # Of 121 the first, and each second of the 58 layers, follow a convolution.
        pytest.param("densenet121", 32, 59, 62, marks=pytest.mark.long),
        pytest.param("mobilenet_v2", 32, 52, 0, marks=pytest.mark.long),
        pytest.param("mnasnet0_5", 32, 52, 0, marks=pytest.mark.long),
        pytest.param("shufflenet_v2_x0_5", 32, 56, 0, marks=pytest.mark.long),
        pytest.param("googlenet", 32, 57, 0, marks=pytest.mark.long),
        pytest.param("inception_v3", 80, 94, 0, marks=pytest.mark.long),
        pytest.param("vgg11_bn", 32, 8, 0, marks=pytest.mark.long),
        pytest.param("randwire_ws_small", 32, 99, 0, marks=pytest.mark.long),
        pytest.param("bn_inception", 32, 69, 0, marks=pytest.mark.long),
    ],
)
def test_same_logits(name, size, folded, kept):
    check(flaxcnn.create_model(name, num_classes=10), (size, size, 3), folded, kept)


class Net(nn.Module):
    """Each way to stand before a BatchNorm."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, *, train):
        def norm(x, name, **fields):
            return BatchNorm(dtype=self.dtype, name=name, **fields)(x, train=train)

        x = norm(x.astype(self.dtype), "of_images")  # kept
        x = Conv(6, (3, 3), dtype=self.dtype, name="biased")(x)
        x = relu(norm(x, "after_biased", epsilon=0.1))
        x = nn.Conv(6, (3, 3), feature_group_count=3, dtype=self.dtype, name="flax")(x)
        x = relu(norm(x, "after_flax", use_scale=False, use_bias=False))
        x = Conv(6, (1, 1), dtype=self.dtype, name="used_twice")(x)
        x = norm(x, "after_used_twice") + x  # kept
        x = Conv(6, (1, 1), dtype=self.dtype, name="normed_twice")(x)
        x = norm(x, "first") + norm(x, "second")  # kept
        shared = Conv(6, (1, 1), dtype=self.dtype, name="shared")
        x = norm(shared(relu(norm(shared(x), "third"))), "fourth")  # kept
        x = norm(relu(x), "after_relu")  # kept
        x = MapDense(5, x.shape[1:3], dtype=self.dtype, name="map")(x)
        x = relu(norm(x, "after_map"))[:, 0, 0]
        x = nn.Dense(4, dtype=self.dtype, name="dense")(x)
        return norm(x, "after_dense").astype(jnp.float32)


@pytest.mark.parametrize(("dtype", "tolerance"), [("f4", 1e-5), ("bfloat16", 0.03)])
def test_every_way_to_stand_before_a_batch_norm(dtype, tolerance):
    model = Net(jnp.dtype(dtype))
    _, folded = check(model, (5, 5, 3), 4, kept=7, tolerance=tolerance)
    gone = {p[0] for p in flatten_dict(folded["params"]) if p[-1] == "folded_bias"}
    assert gone == {"after_biased", "after_flax", "after_map", "after_dense"}
    again = flaxcnn.fold_batchnorm(model, folded, (5, 5, 3))
    jax.tree.map(np.testing.assert_array_equal, again, folded)


def test_blocks_in_a_loop_that_compute_again_in_training():
    called, scanned = (
        flaxcnn.create_model(
            "resnet20_cifar", num_classes=10, scan_blocks=scan, remat=scan
        )
        for scan in (False, True)
    )
    variables, x = shaken(called, (8, 8, 3)), images(2, 8, 8, 3)
    folded = flaxcnn.fold_batchnorm(scanned, variables, (8, 8, 3))
    assert norms(folded) == (0, 19)
    expected = called.apply(variables, x, train=False)
    assert_close(scanned.apply(folded, x, train=False), expected, 1e-4)


def test_folded_variables_do_not_train_and_wrong_ones_are_refused():
    model = flaxcnn.create_model("resblocks_resized")
    shape = (28, 28, 1)
    variables = shaken(model, shape)
    folded = flaxcnn.fold_batchnorm(model, variables, shape)
    assert set(folded) == {"params"}
    with pytest.raises(flaxcnn.FlaxcnnError, match="BatchNorm bn1 is folded into"):
        model.apply(folded, images(2, *shape), train=True, mutable=["batch_stats"])
    with pytest.raises(flaxcnn.FlaxcnnError, match="image_shape"):
        flaxcnn.fold_batchnorm(model, variables, (28, 28, 3))
    for wrong in ({"params": variables["params"]}, {**variables, "params": {}}):
        with pytest.raises(flaxcnn.FlaxcnnError, match="give its own, or the right"):
            flaxcnn.fold_batchnorm(model, wrong, shape)
