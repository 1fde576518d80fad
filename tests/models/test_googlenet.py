"""GoogLeNet: the paper's network against torch, both modules, auxiliary heads.

torchvision's variant is compared with torchvision in tests/parity.
"""

import jax
import jax.numpy as jnp
import pytest

import flaxcnn
from flaxcnn.errors import FlaxcnnError
from flaxcnn.macs import count_macs

# Table 1 of the paper: in, 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, pool proj.
TABLE = {
    "3a": (192, 64, 96, 128, 16, 32, 32),
    "3b": (256, 128, 128, 192, 32, 96, 64),
    "4a": (480, 192, 96, 208, 16, 48, 64),
    "4b": (512, 160, 112, 224, 24, 64, 64),
    "4c": (512, 128, 128, 256, 24, 64, 64),
    "4d": (512, 112, 144, 288, 32, 64, 64),
    "4e": (528, 256, 160, 320, 32, 128, 128),
    "5a": (832, 256, 160, 320, 32, 128, 128),
    "5b": (832, 384, 192, 384, 48, 128, 128),
}


def torch_googlenet():
    """The paper's network with both auxiliary heads, 7 classes."""
    nn = pytest.importorskip("torch.nn")
    from tests.parity.reference import Concatenation, sequence

    class Network(nn.Sequential):
        """Heads are branches: logits, or with them in training (logits, aux2, aux1)."""

        def forward(self, x):
            heads = []
            for name, module in self.named_children():
                if not name.startswith("aux"):
                    x = module(x)
                elif self.training:
                    heads.insert(0, module(x))
            return (x, *heads) if heads else x

    def conv(channels, features, kernel=1, stride=1):
        layer = nn.Conv2d(channels, features, kernel, stride, kernel // 2)
        return sequence(conv=layer, relu=nn.ReLU())

    def pool():
        return nn.MaxPool2d(3, 2, ceil_mode=True)

    def norm():
        return nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0)

    def inception(channels, ones, reduce3, threes, reduce5, fives, projection):
        return sequence(
            Concatenation,
            branch1=conv(channels, ones),
            branch2=nn.Sequential(conv(channels, reduce3), conv(reduce3, threes, 3)),
            branch3=nn.Sequential(conv(channels, reduce5), conv(reduce5, fives, 5)),
            branch4=nn.Sequential(nn.MaxPool2d(3, 1, 1), conv(channels, projection)),
        )

    def head(channels):
        return sequence(
            pool=nn.AvgPool2d(5, 3), conv=conv(channels, 128), flatten=nn.Flatten(),
            fc1=nn.Linear(2048, 1024), relu=nn.ReLU(), dropout=nn.Dropout(0.7),
            fc2=nn.Linear(1024, 7),
        )  # fmt: skip

    blocks = {f"inception{name}": inception(*row) for name, row in TABLE.items()}
    names = list(blocks)
    return sequence(
        Network,
        conv1=conv(3, 64, 7, 2), pool1=pool(), norm1=norm(),
        conv2=conv(64, 64), conv3=conv(64, 192, 3), norm2=norm(), pool2=pool(),
        **{name: blocks[name] for name in names[:2]}, pool3=pool(),
        inception4a=blocks["inception4a"], aux1=head(512),
        **{name: blocks[name] for name in names[3:6]}, aux2=head(528),
        inception4e=blocks["inception4e"], pool4=pool(),
        **{name: blocks[name] for name in names[7:]},
        pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), dropout=nn.Dropout(0.4),
        fc=nn.Linear(1024, 7),
    )  # fmt: skip


def shapes(name, size, train=False, **fields):
    """(variables of an initialization in evaluation mode at 224, endpoints at size)."""
    model = flaxcnn.create_model(name, **fields)

    def variables():
        x = jnp.zeros((1, 224, 224, 3))
        return model.init(jax.random.key(0), x, train=False)

    def apply(variables):
        (_, ends), _ = model.apply(
            variables, jnp.zeros((2, *size, 3)), train=train, endpoints=True,
            mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)},
        )  # fmt: skip
        return ends

    variables = jax.eval_shape(variables)
    return variables, jax.eval_shape(apply, variables)


def count(variables):
    return sum(p.size for p in jax.tree.leaves(variables["params"]))


@pytest.mark.long
def test_the_papers_network_is_the_papers():
    """On pixels as large as caffe's: else the response normalisation does nothing."""
    net = torch_googlenet()
    from tests.parity.reference import (
        compare_evaluation,
        compare_gradients,
        compare_training,
        images,
        randomize,
    )

    fields = {"num_classes": 7, "aux_logits": True}
    randomize(net)
    x = 128 * images(224, 224)
    compare_training("googlenet_paper", net, x, **fields)
    compare_evaluation("googlenet_paper", net, x[:, :69, :98], **fields)
    compare_gradients("googlenet_paper", net, x, train=True, **fields)


@pytest.mark.parametrize(
    ("name", "fields", "params"),
    [
        ("googlenet", {"aux_logits": True}, 13_004_888),
        ("googlenet_paper", {"aux_logits": True}, 13_378_280),
        ("googlenet", {"kernel_5x5": 5}, 7_005_832),
    ],
)
def test_options_make_parameters_whatever_the_mode(name, fields, params):
    """Auxiliary heads exist without training; only their outputs are of it."""
    variables, ends = shapes(name, (64, 64), train=False, **fields)
    assert count(variables) == params
    assert not {"aux1", "aux2"} & ends.keys()


def test_naive_modules_grow_with_their_input():
    """Figure 2a: no reductions, and the pooling hands on all of its input."""
    variables, ends = shapes("googlenet_paper", (64, 64), module="naive")
    channels = 192
    params = (7 * 7 * 3 + 1) * 64 + (64 + 1) * 64 + (9 * 64 + 1) * 192
    for name, (_, ones, _, threes, _, fives, _) in TABLE.items():
        params += (channels + 1) * ones
        params += (9 * channels + 1) * threes
        params += (25 * channels + 1) * fives
        channels += ones + threes + fives
        assert ends[f"inception{name}"].shape[-1] == channels
    assert ends["pre_logits"].shape == (2, channels)
    assert count(variables) == params + (channels + 1) * 1000


def test_reductions_save_most_of_the_work():
    naive, reduced = (
        count_macs(flaxcnn.create_model("googlenet_paper", module=m), (224, 224, 3))
        for m in ("naive", "reduced")
    )
    assert naive > 5 * reduced


@pytest.mark.parametrize("name", ["googlenet", "googlenet_paper"])
@pytest.mark.parametrize("size", [(64, 64), (97, 130)])
def test_other_sizes_with_the_same_variables(name, size):
    fields = {"num_classes": 5, "aux_logits": True, "dtype": jnp.bfloat16}
    _, ends = shapes(name, size, train=True, **fields)
    for aux in (ends["aux1"], ends["aux2"]):
        assert (aux.shape, aux.dtype) == ((2, 5), jnp.float32)
    assert ends["pre_logits"].shape == (2, 1024)


@pytest.mark.parametrize(("name", "size"), [("googlenet", 15), ("googlenet_paper", 31)])
def test_smallest_size(name, size):
    _, ends = shapes(name, (size, size))
    assert ends["inception5b"].shape == (2, 1, 1, 1024)
    with pytest.raises(FlaxcnnError, match=f"resize it to at least {size}x{size}"):
        shapes(name, (size, size - 1))


def test_impossible_fields():
    with pytest.raises(FlaxcnnError, match="auxiliary classifiers need classes"):
        shapes("googlenet", (64, 64), num_classes=0, aux_logits=True)
    with pytest.raises(FlaxcnnError, match=r"'naiv'; did you mean .*naive"):
        shapes("googlenet", (64, 64), module="naiv")
