"""The lecture's residual nets, spelled layer by layer, in torch."""

import jax
import numpy as np
import pytest

import flaxcnn


def build(name):
    torch = pytest.importorskip("torch")
    nn = torch.nn

    class Spelled(nn.Module):
        """The notebook's first spelling: no helper class."""

        def __init__(self):
            super().__init__()
            if name == "resblocks_identity":
                rows = [(1, 4, 1, 1, 4, 1, 3), (1, 4, 1, 1, 4, 1, 3)]
            else:
                rows = [(1, 4, 3, 2, 4, 8, 1), (8, 16, 3, 2, 16, 32, 1)]
            for i, (c, inner, k1, stride, _, out, k2) in enumerate(rows, start=1):
                block = nn.Module()
                block.conv1 = nn.Conv2d(c, inner, k1, stride, k1 // 2)
                block.bn1 = nn.BatchNorm2d(inner)
                block.conv2 = nn.Conv2d(inner, out, k2, 1, k2 // 2)
                block.bn2 = nn.BatchNorm2d(out)
                if stride == 2:
                    block.conv_shortcut = nn.Conv2d(c, out, 1, 2)
                    block.bn_shortcut = nn.BatchNorm2d(out)
                setattr(self, f"block{i}", block)
            self.fc = nn.Linear(784 if out == 1 else 7 * 7 * 32, 10)

        def forward(self, x):
            for block in (self.block1, self.block2):
                y = block.bn1(block.conv1(x)).relu()
                y = block.bn2(block.conv2(y))
                if hasattr(block, "conv_shortcut"):
                    x = block.bn_shortcut(block.conv_shortcut(x))
                x = (y + x).relu()
            return self.fc(x.flatten(1))

    torch.manual_seed(0)
    return Spelled()


@pytest.mark.parametrize("name", ["resblocks_identity", "resblocks_resized"])
def test_two_spellings_give_the_same_result(name):
    torch = pytest.importorskip("torch")
    from flaxcnn.weights import from_torch

    net = build(name).double()  # in float32 the one that errs more is torch
    x = np.random.default_rng(0).uniform(size=(3, 28, 28, 1)).astype(np.float32)
    images = torch.from_numpy(x.transpose(0, 3, 1, 2)).double()
    variables = from_torch(name, net.state_dict())
    model = flaxcnn.create_model(name)
    for train in (False, True):
        net.train(train)
        expected = net(images).detach().numpy()
        logits, updates = model.apply(
            variables, x, train=train, mutable=["batch_stats"]
        )
        np.testing.assert_allclose(logits, expected, atol=1e-5)
    after = from_torch(name, net.state_dict())["batch_stats"]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
        updates["batch_stats"], after,
    )  # fmt: skip
