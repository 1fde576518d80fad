"""Multiply-adds against closed forms."""

import jax.numpy as jnp
from flax import linen as nn

import flaxcnn
from flaxcnn.layers import Conv, MapDense
from flaxcnn.macs import count_macs


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        x = Conv(8, (3, 5), 2, 1, name="plain")(x)  # 9x12x4 to 5x5x8
        x = nn.Conv(16, (3, 3), 1, 1, feature_group_count=8, name="grouped")(x)
        x = nn.Dense(7, name="pointwise")(x)
        x = MapDense(3, (5, 5), name="map")(x)
        return nn.Dense(2, use_bias=False, name="dense")(jnp.mean(x, (1, 2)))


def test_closed_form():
    expected = [
        5 * 5 * 8 * (3 * 5 * 4),
        5 * 5 * 16 * (3 * 3 * 1),
        5 * 5 * 7 * 16,
        3 * (5 * 5 * 7),
        2 * 3,
    ]
    assert count_macs(Net(), (9, 12, 4)) == sum(expected)


def test_heads_that_only_train_do_not_count():
    model = flaxcnn.create_model("googlenet", aux_logits=True)
    info = flaxcnn.model_info("googlenet")
    assert count_macs(model, info.input_size) == info.macs


def test_blocks_in_a_loop_count_each():
    called = flaxcnn.create_model("resnet20_cifar")
    scanned = flaxcnn.create_model("resnet20_cifar", scan_blocks=True)
    assert count_macs(scanned, (32, 32, 3)) == count_macs(called, (32, 32, 3))
