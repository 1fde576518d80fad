"""The classifier that ends a network."""

from flax import linen as nn
from flax.typing import Initializer
from jax import Array

from flaxcnn.layers.dropout import Dropout
from flaxcnn.layers.init import torch_uniform
from flaxcnn.layers.precision import wide


def classify(
    x: Array,
    num_classes: int,
    name: str,
    *,
    train: bool,
    dropout: float = 0.0,
    kernel_init: Initializer | None = None,
    bias_init: Initializer = nn.initializers.zeros,
) -> Array:
    """Logits [..., num_classes] of features [..., C]: Dropout and Dense.

    In float32 or better. The features themselves, without dropout, if num_classes is 0.
    Call it in a compact method; `name` is that of the Dense layer. Its kernel and
    biases are drawn as torch draws them, unless `kernel_init` is given: then by the
    initializers.
    """
    x = wide(x)
    if not num_classes:
        return x
    if dropout:
        x = Dropout(dropout)(x, train=train)
    if kernel_init is None:
        kernel_init = bias_init = torch_uniform(x.shape[-1])
    dense = nn.Dense(
        num_classes, kernel_init=kernel_init, bias_init=bias_init, name=name
    )
    return dense(x)
