"""The small networks against torch, written from the papers' tables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

import flaxcnn

TOP = [("conv", 192, 3, 1, 0), ("conv", 192, 1, 1, 0), ("conv", 10, 1, 1, 0)]
POOL = ("max", 3, 2, 1)
BLOCKS = {"a": (5,), "b": (5, 1), "c": (3, 3)}


def allcnn_rows(base, reduction):
    rows = []
    for width in (96, 192):
        block = [("conv", width, k, 1, k // 2) for k in BLOCKS[base]]
        if reduction == "strided":
            kind, width, k, _, padding = block[-1]
            block[-1] = (kind, width, k, 2, padding)
        if reduction == "convpool":
            block += [("conv", width, 3, 1, 1), POOL]
        if reduction == "pool":
            block += [POOL]
        if reduction == "all":
            block += [("conv", width, 3, 2, 1)]
        rows += block
    return rows + TOP


def nin_rows(lecture):
    pools = [("max", 3, 2, 1), ("avg", 3, 2, 1)] if lecture else [("ceil", 3, 2, 0)] * 2
    return [
        ("conv", 192, 5, 1, 2), ("conv", 160, 1, 1, 0), ("conv", 96, 1, 1, 0),
        pools[0],
        ("conv", 192, 5, 1, 2), ("conv", 192, 1, 1, 0), ("conv", 192, 1, 1, 0),
        pools[1],
        ("conv", 192, 3, 1, 1), ("conv", 192, 1, 1, 0), ("conv", 10, 1, 1, 0),
    ]  # fmt: skip


ALLCONV_ROWS = [
    ("conv", width, 3, stride, 1)
    for width, stride in zip(
        (4, 4, 8, 8, 16, 16, 10), (1, 2, 1, 2, 1, 2, 1), strict=True
    )
]

NETS = {
    **{
        f"{prefix}_{base}": allcnn_rows(base, reduction)
        for prefix, reduction in (
            ("cnn", "pool"), ("strided_cnn", "strided"), ("convpool_cnn", "convpool"),
            ("allcnn", "all"),
        )
        for base in "abc"
    },
    "nin": nin_rows(lecture=False),
    "nin_lecture": nin_rows(lecture=True),
    "allconv_mnist": ALLCONV_ROWS,
}  # fmt: skip


def build(rows, channels):
    layers = []
    for kind, *args in rows:
        if kind == "conv":
            width, kernel, stride, padding = args
            layers += [nn.Conv2d(channels, width, kernel, stride, padding), nn.ReLU()]
            channels = width
        elif kind == "avg":
            layers.append(nn.AvgPool2d(*args))
        else:
            layers.append(nn.MaxPool2d(*args, ceil_mode=kind == "ceil"))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def build_normalised(rows, channels):
    """BatchNorm in place of all biases; the last convolution is the classifier."""
    *rows, last = rows
    layers = []
    for _, width, kernel, stride, padding in rows:
        conv = nn.Conv2d(channels, width, kernel, stride, padding, bias=False)
        layers += [conv, nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
    layers.append(nn.Conv2d(channels, last[1], 1))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def convs(params):
    """Convolutions of a flax tree in the order of the network."""
    for key in sorted(params, key=lambda key: (key == "classifier", key)):
        if "kernel" in params[key]:
            yield params[key]
        else:
            yield from convs(params[key])


def multiply_adds(net, x):
    total = 0

    def count(module, _, y):
        nonlocal total
        kernel = module.kernel_size[0] * module.kernel_size[1]
        total += y[0].numel() * kernel * module.in_channels

    for module in net:
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    net(x)
    return total


# One of each column and row of the paper's tables; the other eight in the long tier.
FIRST = ("cnn_a", "strided_cnn_b", "convpool_cnn_c", "allcnn_c",
         "nin", "nin_lecture", "allconv_mnist")  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n in FIRST else pytest.mark.long) for n in NETS],
)
def test_logits_and_gradients(name):
    """In float64, where no rounding moves a ReLU's or a maximum's decision."""
    channels = flaxcnn.model_info(name).input_size[2]
    random = np.random.default_rng(0)
    x = random.normal(size=(2, 13, 16, channels))
    net = build(NETS[name], channels).double()
    targets = [m for m in net if isinstance(m, nn.Conv2d)]
    with jax.enable_x64(True):
        model = flaxcnn.create_model(name, dtype=jnp.float64)
        shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))
        params = jax.tree.map(  # biases start at zero; random ones can be mistaken
            lambda p: random.normal(size=p.shape) / np.sqrt(p.size / p.shape[-1]),
            shapes["params"],
        )
        for conv, target in zip(convs(params), targets, strict=True):
            target.weight.data = torch.from_numpy(conv["kernel"].transpose(3, 2, 0, 1))
            target.bias.data = torch.from_numpy(conv["bias"])

        def loss_and_logits(params):
            logits = model.apply({"params": params}, x, train=False)
            return -jax.nn.log_softmax(logits)[:, 3].mean(), logits

        compute = jax.jit(jax.value_and_grad(loss_and_logits, has_aux=True))
        (loss, logits), grads = compute(params)

    reference = net(torch.from_numpy(x.transpose(0, 3, 1, 2)))
    reference_loss = nn.functional.cross_entropy(reference, torch.tensor([3, 3]))
    reference_loss.backward()
    assert relative(logits, reference.detach()) < 1e-6  # pooled in float32
    assert loss == pytest.approx(reference_loss.item(), rel=1e-6)
    for conv, target in zip(convs(grads), targets, strict=True):
        kernel = np.array(conv["kernel"]).transpose(3, 2, 0, 1)
        assert relative(kernel, target.weight.grad) < 1e-5
        assert relative(conv["bias"], target.bias.grad) < 1e-5


def test_all_cnn_with_batch_norm():
    """Training: logits, running statistics and every gradient, in float64."""
    random = np.random.default_rng(0)
    x = random.normal(size=(2, 13, 16, 3))
    net = build_normalised(NETS["allcnn_c"], 3).double()
    with jax.enable_x64(True):
        model = flaxcnn.create_model("allcnn_c_bn", dtype=jnp.float64)
        shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))
        params = jax.tree.map(lambda p: random.normal(size=p.shape), shapes["params"])
        names = [f"{kind}{i}" for i in range(1, 9) for kind in ("conv", "norm")]
        layers = dict(zip([*names, "conv9"], parametrised(net), strict=True))
        assert sorted(layers) == sorted(params)
        for name, layer in layers.items():
            for key, torch_name in TORCH_NAMES.items():
                if key in params[name]:
                    value = as_torch(params[name][key])
                    getattr(layer, torch_name).data = torch.from_numpy(value)
        stats = jax.tree.map(lambda s: jnp.full(s.shape, 0.5), shapes["batch_stats"])
        for layer in net:
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean[:] = layer.running_var[:] = 0.5

        def loss_and_rest(params):
            logits, updates = model.apply(
                {"params": params, "batch_stats": stats}, x, train=True,
                mutable=["batch_stats"],
            )  # fmt: skip
            return -jax.nn.log_softmax(logits)[:, 3].mean(), (logits, updates)

        compute = jax.jit(jax.value_and_grad(loss_and_rest, has_aux=True))
        (_, (logits, updates)), grads = compute(params)

    reference = net(torch.from_numpy(x.transpose(0, 3, 1, 2)))
    nn.functional.cross_entropy(reference, torch.tensor([3, 3])).backward()
    assert relative(logits, reference.detach()) < 1e-6  # pooled in float32
    for name, layer in layers.items():
        for key, grad in grads[name].items():
            expected = getattr(layer, TORCH_NAMES[key]).grad
            assert relative(as_torch(grad), expected) < 1e-5
    for name, running in updates["batch_stats"].items():
        assert relative(running["mean"], layers[name].running_mean) < 1e-6
        assert relative(running["var"], layers[name].running_var) < 1e-6


TORCH_NAMES = {"kernel": "weight", "scale": "weight", "bias": "bias"}


def parametrised(net):
    return [layer for layer in net if list(layer.parameters())]


def as_torch(value):
    """Kernels [H, W, I, O] as [O, I, H, W], vectors as they are."""
    value = np.array(value)
    return value.transpose(3, 2, 0, 1).copy() if value.ndim == 4 else value


@pytest.mark.parametrize("name", [*NETS, "allcnn_c_bn"])
def test_published_facts(name):
    info = flaxcnn.model_info(name)
    height, width, channels = info.input_size
    if name == "allcnn_c_bn":
        net = build_normalised(NETS["allcnn_c"], channels)
    else:
        net = build(NETS[name], channels)
    assert sum(p.numel() for p in net.parameters()) == info.params
    macs = multiply_adds(net, torch.zeros(1, channels, height, width))
    assert macs == pytest.approx(info.macs, rel=1e-3)


def relative(ours, reference):
    reference = np.asarray(reference)
    assert np.linalg.norm(reference) > 0
    return np.linalg.norm(np.asarray(ours) - reference) / np.linalg.norm(reference)


def test_dense_after_flatten_is_not_what_these_nets_have():
    """All of them accept other sizes: no parameter knows the size of the image."""
    x = jnp.zeros((1, 40, 33, 3))
    for name in ("allcnn_c", "nin"):
        model = flaxcnn.create_model(name)
        shapes = jax.eval_shape(
            lambda m=model: m.init(jax.random.key(0), x, train=False)
        )
        assert sum(p.size for p in jax.tree.leaves(shapes)) == (
            flaxcnn.model_info(name).params
        )
