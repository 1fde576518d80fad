"""Comparison of a model with a torch network of the same weights."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import linen as nn

import flaxcnn
from flaxcnn.weights import from_torch

TOLERANCE = 1e-4  # norm of the difference over norm


def randomize(net, bias=0.0, seed=0):
    """Random convolutions, batch statistics and affine parameters.

    Kernels are He's, so that signals neither grow nor fade on their way. The biases of
    BatchNorm are about `bias`: at 1 fewer ReLUs are near an edge, where a batch's
    statistics amplify rounding from layer to layer.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor, low, high):
        tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)

    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                uniform(module.weight, 0.6, 1.4)
                uniform(module.bias, bias - 0.3, bias + 0.3)
                uniform(module.running_mean, -0.3, 0.3)
                uniform(module.running_var, 0.6, 1.4)
            elif isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight, generator=generator)
                if module.bias is not None:
                    uniform(module.bias, -0.3, 0.3)
    return net


def images(height, width, batch=1, channels=3, seed=0):
    """Random images [N, H, W, C] of values in [-1, 1], smooth enough to matter."""
    random = np.random.default_rng(seed)
    return random.uniform(-1, 1, (batch, height, width, channels)).astype(np.float32)


def channels_first(x):
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(np.asarray(x), -1, 1)))


def relative(ours, reference):
    """Norm of the difference over the norm; `reference` in torch's layout."""
    reference = reference.detach().numpy()
    if reference.ndim == 4:
        reference = np.moveaxis(reference, 1, -1)
    ours = np.asarray(ours)
    assert ours.shape == reference.shape
    assert np.linalg.norm(reference) > 0
    return np.linalg.norm(ours - reference) / np.linalg.norm(reference)


def without_dropout(net):
    """Training mode, but with every dropout switched off."""
    net.train()
    for module in net.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return net


def skip_dropout(call, args, kwargs, context):
    """An interceptor of flax methods: the same for our network."""
    if isinstance(context.module, nn.Dropout):
        return args[0]
    return call(*args, **kwargs)


class Concatenation(torch.nn.Sequential):
    """Branches side by side, their channels concatenated."""

    def forward(self, x):
        return torch.cat([branch(x) for branch in self], 1)


def sequence(kind=torch.nn.Sequential, **modules):
    """A Sequential, or another container, of named modules."""
    net = kind()
    for name, module in modules.items():
        net.add_module(name, module)
    return net


class Outputs:
    """Records what named modules of a torch network return, copied at once."""

    def __init__(self, net, names):
        self.values = {}
        for name in names:
            net.get_submodule(name).register_forward_hook(self._recorder(name))

    def _recorder(self, name):
        def record(module, args, output):
            self.values[name] = output.detach().clone()

        return record


def compare_evaluation(name, net, x, modules=None, **fields):
    """Logits and every endpoint agree.

    Args:
      name: registered name.
      net: the torch network; a forward pass returns logits [N, classes].
      x: images [N, H, W, C].
      modules: {our endpoint: torch's module} where the names differ.
      **fields: of our model.
    """
    variables = from_torch(name, net.state_dict(), **fields)
    model = flaxcnn.create_model(name, **fields)
    apply = jax.jit(lambda v, x: model.apply(v, x, train=False, endpoints=True))
    logits, ends = apply(variables, jnp.asarray(x))
    modules = {key: key for key in ends if key != "pre_logits"} | (modules or {})
    outputs = Outputs(net, modules.values())
    with torch.no_grad():
        expected = net.eval()(channels_first(x))
    differences = {"logits": relative(logits, expected)}
    for end, module in modules.items():
        differences[end] = relative(ends[end], outputs.values[module])
    assert max(differences.values()) < TOLERANCE, differences
    return differences


def compare_training(name, net, x, **fields):
    """Logits and updated statistics agree in training mode, dropout off.

    Auxiliary logits too: torch's network then returns a tuple, logits first.
    """
    variables = from_torch(name, net.state_dict(), **fields)
    model = flaxcnn.create_model(name, **fields)

    @jax.jit
    def apply(variables, x):
        return model.apply(
            variables, x, train=True, endpoints=True, mutable=["batch_stats"]
        )

    with nn.intercept_methods(skip_dropout):
        (logits, ends), updates = apply(variables, jnp.asarray(x))
    with torch.no_grad():
        expected = without_dropout(net)(channels_first(x))
    expected = expected if isinstance(expected, tuple) else (expected,)
    # torchvision's GoogLeNet lists the last head first.
    heads = [ends[key] for key in sorted(ends, reverse=True) if key.startswith("aux")]
    differences = {
        f"logits{i}": relative(ours, theirs)
        for i, (ours, theirs) in enumerate(zip([logits, *heads], expected, strict=True))
    }
    after = from_torch(name, net.state_dict(), **fields)
    ours = jax.tree_util.tree_leaves_with_path(updates.get("batch_stats", {}))
    theirs = jax.tree.leaves(after.get("batch_stats", {}))
    for (path, value), reference in zip(ours, theirs, strict=True):
        key = jax.tree_util.keystr(path, simple=True, separator="/")
        differences[key] = relative(value, torch.from_numpy(reference.copy()))
    assert max(differences.values()) < TOLERANCE, {
        key: value for key, value in differences.items() if not value < TOLERANCE
    }
    return differences


def compare_gradients(name, net, x, train=False, tolerance=1e-4, **fields):
    """Parameter gradients of a cross-entropy agree, in float64.

    There no rounding moves a ReLU's decision. In training mode, dropout off, they go
    through the batch statistics, and the auxiliary heads add their weighted losses.
    """
    labels = np.arange(len(x)) % 7
    weights = flaxcnn.model_info(name).aux_weights
    net = without_dropout(net.double()) if train else net.double().eval()
    variables = from_torch(name, net.state_dict(), **fields)
    model = flaxcnn.create_model(name, dtype=jnp.float64, **fields)

    def cross_entropy(logits):
        log_p = jax.nn.log_softmax(logits)
        return -jnp.take_along_axis(log_p, labels[:, None], 1).mean()

    def loss(params, others, x):
        (logits, ends), _ = model.apply(
            {**others, "params": params}, x, train=train, endpoints=True,
            mutable=["batch_stats"],
        )  # fmt: skip
        heads = [w * cross_entropy(ends[h]) for h, w in weights.items() if h in ends]
        return cross_entropy(logits) + sum(heads)

    with jax.enable_x64(True), nn.intercept_methods(skip_dropout):
        variables = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), variables)
        params = variables.pop("params")
        ours = jax.jit(jax.grad(loss))(params, variables, jnp.asarray(x, jnp.float64))

    outputs = net(channels_first(x).double())
    # torchvision's GoogLeNet lists the last head first; its weights are all the same.
    logits, *heads = outputs if isinstance(outputs, tuple) else (outputs,)
    target = torch.from_numpy(labels)
    total = torch.nn.functional.cross_entropy(logits, target)
    for head, weight in zip(heads, weights.values(), strict=bool(heads)):
        total = total + weight * torch.nn.functional.cross_entropy(head, target)
    total.backward()
    gradients = {key: p.grad for key, p in net.named_parameters()}
    state = {key: gradients.get(key, value) for key, value in net.state_dict().items()}
    theirs = from_torch(name, state, **fields)["params"]

    largest = max(np.linalg.norm(g) for g in jax.tree.leaves(theirs))
    leaves = jax.tree_util.tree_leaves_with_path(ours)
    for (path, leaf), reference in zip(leaves, jax.tree.leaves(theirs), strict=True):
        size = np.linalg.norm(reference)
        # The bias of a convolution before BatchNorm has none, but for rounding.
        zero = np.zeros_like(reference) if size < 1e-9 * largest else reference
        difference = np.linalg.norm(np.asarray(leaf) - zero)
        assert difference <= tolerance * max(size, 1e-5 * largest), (path, size)
