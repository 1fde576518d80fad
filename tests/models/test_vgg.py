"""What VGG alone has: dense evaluation, and the columns that torchvision lacks.

With a classifier map of 1x1 or 2x2, which keeps the first fully connected layer small.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxcnn
from flaxcnn.errors import FlaxcnnError

# The paper's table 1, layer by layer: (channels, kernel), M for pooling, L for LRN.
C = [(64, 3), (64, 3), "M", (128, 3), (128, 3), "M",
     (256, 3), (256, 3), (256, 1), "M", (512, 3), (512, 3), (512, 1), "M",
     (512, 3), (512, 3), (512, 1), "M"]  # fmt: skip
D = [(row[0], 3) if row != "M" else row for row in C]
A_LRN = [(64, 3), "L", "M", (128, 3), "M", (256, 3), (256, 3), "M",
         (512, 3), (512, 3), "M", (512, 3), (512, 3), "M"]  # fmt: skip


def variables_of(name, **fields):
    """Random variables, each layer of about the same scale, biases not zero."""
    model = flaxcnn.create_model(name, num_classes=3, **fields)
    x = jnp.zeros((1, 64, 64, 3))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))
    random = np.random.default_rng(0)
    return jax.tree.map(
        lambda p: (
            random.standard_normal(p.shape, np.float32)
            * np.float32(np.sqrt(2 * p.shape[-1] / p.size) if p.ndim > 1 else 0.1)
        ),
        shapes,
    )


def forward(name, variables, x, **fields):
    model = flaxcnn.create_model(name, num_classes=3, **fields)
    apply = jax.jit(lambda v, x: model.apply(v, x, train=False, endpoints=True))
    logits, ends = apply(variables, x)
    return np.asarray(logits), ends


def images(*shape, scale=1.0):
    x = np.random.default_rng(1).standard_normal(shape, np.float32)
    return x * np.float32(scale)


def relative(ours, reference):
    return np.linalg.norm(ours - reference) / np.linalg.norm(reference)


def test_dense_evaluation_slides_the_fully_connected_layers():
    """Each logit vector of the map is that of its own window of the last map."""
    fields = {"map_size": 2}
    variables = variables_of("vgg11", **fields)
    logits, ends = forward(
        "vgg11", variables, images(2, 96, 128, 3), fully_conv=True, **fields
    )
    assert logits.shape == (2, 2, 3, 3)
    assert ends["pre_logits"].shape == (2, 2, 3, 4096)

    params = variables["params"]
    first, second, last = (params[f"classifier.{i}"] for i in (0, 3, 6))
    matrix = first["map_kernel"].reshape(-1, 4096)
    block5 = np.asarray(ends["block5"])  # [2, 3, 4, 512]
    for i, j in np.ndindex(2, 3):
        window = block5[:, i : i + 2, j : j + 2].reshape(2, -1)
        hidden = np.maximum(window @ matrix + first["bias"], 0)
        hidden = np.maximum(hidden @ second["kernel"] + second["bias"], 0)
        expected = hidden @ last["kernel"] + last["bias"]
        assert relative(logits[:, i, j], expected) < 1e-5

    one = images(1, 64, 64, 3)  # the map has the classifier's size: one window
    dense, _ = forward("vgg11", variables, one, fully_conv=True, **fields)
    plain, _ = forward("vgg11", variables, one, **fields)
    assert dense.shape == (1, 1, 1, 3)
    assert relative(dense[:, 0, 0], plain) < 1e-5


@pytest.mark.long
def test_dense_evaluation_at_the_standard_sizes():
    """The same logits at 224 pixels, a map of them at 256."""
    variables = variables_of("vgg11")
    x = images(1, 224, 224, 3)
    logits, _ = forward("vgg11", variables, x, fully_conv=True)
    plain, _ = forward("vgg11", variables, x)
    assert logits.shape == (1, 1, 1, 3)
    assert relative(logits[:, 0, 0], plain) < 1e-5
    large, _ = forward("vgg11", variables, images(1, 256, 256, 3), fully_conv=True)
    assert large.shape == (1, 2, 2, 3)


def test_dense_evaluation_needs_a_map_of_the_classifiers_size():
    model = flaxcnn.create_model("vgg16", fully_conv=True)
    x = jnp.zeros((1, 223, 224, 3))
    with pytest.raises(FlaxcnnError, match=r"223x224 pixels .* least 224x224"):
        jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))


@pytest.mark.parametrize(
    ("name", "rows", "scale"),
    [
        ("vgg11_lrn", A_LRN, 100.0),  # large enough for LRN to divide by much
        ("vgg16_c", C, 1.0),
        ("vgg16_cifar", D, 1.0),
    ],
)
def test_columns_against_torch(name, rows, scale):
    torch = pytest.importorskip("torch")
    layers, channels = [], 3
    for row in rows:
        if row == "M":
            layers.append(torch.nn.MaxPool2d(2, 2))
        elif row == "L":  # torch divides its alpha by the size
            layers.append(torch.nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0))
        else:
            width, kernel = row
            conv = torch.nn.Conv2d(channels, width, kernel, padding=kernel // 2)
            layers += [conv, torch.nn.ReLU()]
            channels = width
    layers += [torch.nn.Flatten(), torch.nn.Linear(512, 4096), torch.nn.ReLU()]
    layers += [torch.nn.Linear(4096, 4096), torch.nn.ReLU(), torch.nn.Linear(4096, 3)]
    net = torch.nn.Sequential(*layers)

    variables = variables_of(name, map_size=1)
    state = flaxcnn.weights.to_torch(name, variables, num_classes=3, map_size=1)
    keys = [key for key in state if key.endswith("weight")]
    keys.sort(key=lambda key: (key.startswith("classifier"), int(key.split(".")[1])))
    weighted = [layer for layer in layers if hasattr(layer, "weight")]
    for layer, key in zip(weighted, keys, strict=True):
        layer.weight.data = torch.from_numpy(state[key].copy())
        layer.bias.data = torch.from_numpy(state[key.replace("weight", "bias")].copy())

    x = images(2, 32, 32, 3, scale=scale)
    logits, _ = forward(name, variables, x, map_size=1)
    with torch.no_grad():
        expected = net(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy()
    assert relative(logits, expected) < 1e-5


def test_response_normalization_has_no_variables():
    """The weights of one are the weights of the other."""
    x = jnp.zeros((1, 32, 32, 3))
    with_lrn, without = (
        jax.eval_shape(lambda m=m: m.init(jax.random.key(0), x, train=False))
        for m in map(flaxcnn.create_model, ("vgg11_lrn", "vgg11"))
    )
    assert with_lrn == without


def test_the_lectures_initialization():
    """U(+-sqrt(6 / fan_in)) for every weight, biases zero."""
    model = flaxcnn.create_model("vgg16_cifar")
    x = jnp.zeros((1, 32, 32, 3))
    key = jax.random.key(0, impl="rbg")  # many times faster on CPU
    params = jax.jit(lambda: model.init(key, x, train=False))()["params"]
    for name, layer in params.items():
        (kernel,) = (np.asarray(p) for leaf, p in layer.items() if leaf != "bias")
        bound = np.sqrt(6 * kernel.shape[-1] / kernel.size)
        assert np.abs(kernel).max() <= bound * (1 + 1e-6), name
        assert np.abs(kernel).max() > 0.97 * bound, name
        assert kernel.std() == pytest.approx(bound / np.sqrt(3), rel=0.05), name
        assert not layer["bias"].any(), name
