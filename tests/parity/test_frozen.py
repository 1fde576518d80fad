"""Frozen layers against torchvision: one step with parts of a network in eval mode."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import torchvision
from flax.traverse_util import flatten_dict

import flaxcnn
from flaxcnn.structure import module_calls
from flaxcnn.train.state import TrainState, split_params
from flaxcnn.train.steps import make_train_step
from flaxcnn.transfer import FrozenTrunk
from flaxcnn.weights import from_torch
from tests.parity.reference import channels_first, images, randomize

TRAINED = "(layer4|fc).*"
SHAPE = (48, 40, 3)
LABELS = np.array([0, 4, 2, 2])


def torchvision_resnet18():
    torch.manual_seed(0)
    return randomize(torchvision.models.resnet18(num_classes=5), bias=1.0).double()


def torch_step(net, x, frozen):
    """One SGD step of rate 1, in place; the loss."""
    net.train()
    trained = []
    for name, module in net.named_modules():
        if re.fullmatch(TRAINED, name):
            trained += module.parameters(recurse=False)
            continue
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad = False
        if frozen == "eval" and isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    optimizer = torch.optim.SGD(trained, lr=1.0)
    logits = net(channels_first(x).double())
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(LABELS))
    loss.backward()
    optimizer.step()
    return loss.item()


def double(tree):
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), tree)


def our_step(variables, x, frozen):
    """(variables after a step, loss) in float64."""
    with jax.enable_x64(True):
        model = flaxcnn.create_model("resnet18", num_classes=5, dtype=jnp.float64)
        network = model if frozen == "train" else FrozenTrunk(model, SHAPE, TRAINED)
        tx = optax.with_extra_args_support(optax.sgd(1.0))
        step = make_train_step(network, tx, num_classes=5, trained=TRAINED)
        variables = double(variables)
        opt_state = tx.init(split_params(variables["params"], TRAINED)[0])
        state = TrainState(jnp.int32(0), variables, opt_state, None)
        batch = {"image": jnp.asarray(x, jnp.float64), "label": jnp.asarray(LABELS)}
        state, metrics = jax.jit(step)(state, batch)
        return jax.device_get(state.variables), float(metrics["loss"]) / len(x)


@pytest.mark.parametrize(
    "frozen", ["eval", pytest.param("train", marks=pytest.mark.long)]
)
def test_a_step_of_the_last_stage_and_the_head(frozen):
    """Loss, gradients and running statistics are torch's; the rest is untouched.

    The gradients are the differences of an SGD step of rate 1.
    """
    net = torchvision_resnet18()
    # Through float32, as `from_torch` gives it.
    before = from_torch("resnet18", net.state_dict(), num_classes=5)
    x = images(*SHAPE[:2], batch=4)
    after, loss = our_step(before, x, frozen)
    assert loss == pytest.approx(torch_step(net, x, frozen), rel=1e-5)

    before, after = flatten_dict(before, sep="/"), flatten_dict(after, sep="/")
    state = {key: value.numpy() for key, value in net.state_dict().items()}
    theirs = flatten_dict(from_torch("resnet18", state, num_classes=5), sep="/")
    for path, ours in after.items():
        module = path.partition("/")[2]
        is_trained = re.fullmatch(TRAINED, module) is not None
        if is_trained or (frozen == "train" and path.startswith("batch_stats")):
            step = theirs[path].astype(np.float64) - before[path]
            assert np.linalg.norm(step) > 0, path
            difference = np.linalg.norm(ours - before[path] - step)
            # `from_torch` rounds to float32 what the step is a difference of.
            rounding = 1e-7 * np.linalg.norm(before[path])
            assert difference < 1e-4 * np.linalg.norm(step) + rounding, path
        else:
            np.testing.assert_array_equal(ours, before[path], path)
            np.testing.assert_array_equal(ours, theirs[path], path)


@pytest.mark.parametrize(
    "name",
    ["resnet18", "vgg11_bn", "squeezenet1_1"]
    + [
        pytest.param(name, marks=pytest.mark.long)
        for name in ("densenet121", "googlenet", "inception_v3", "mnasnet0_5",
                     "mobilenet_v2", "resnet50", "shufflenet_v2_x0_5", "alexnet")
    ],
)  # fmt: skip
def test_layers_are_called_in_the_order_of_torch(name):
    fields = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    if fields:
        fields["aux_logits"] = False
    with torch.device("meta"):
        net = getattr(torchvision.models, name)(**fields).eval()
    called = []
    for path, module in net.named_modules():
        if list(module.parameters(recurse=False)):
            module.register_forward_hook(
                lambda *_, path=path: path in called or called.append(path)
            )
    size = max(96, flaxcnn.model_info(name).input_size[0])
    net(torch.empty(1, 3, size, size, device="meta"))
    calls = module_calls(flaxcnn.create_model(name), (size, size, 3))
    ours = [call.path.replace("/", ".") for call in calls if call.params]
    assert ours == called
