"""The network of airbench94 (Jordan, 2024, arXiv:2404.00498) with our layers."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from flaxcnn.layers import BatchNorm, Conv, max_pool


class Group(nn.Module):
    """Two 3x3 convolutions, the first followed by a pooling."""

    width: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[N, H, W, C] to [N, H // 2, W // 2, width]."""
        conv = partial(
            Conv, self.width, (3, 3), padding=1, use_bias=False, dtype=self.dtype
        )
        norm = partial(BatchNorm, dtype=self.dtype)
        gelu = partial(nn.gelu, approximate=False)
        x = max_pool(conv(name="conv1")(x), 2)
        x = gelu(norm(name="norm1")(x, train=train))
        return gelu(norm(name="norm2")(conv(name="conv2")(x), train=train))


class Airbench94(nn.Module):
    """Its whitening convolution and its scales are trained here like all the others."""

    dtype: Dtype

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool, endpoints: bool = False
    ) -> jax.Array | tuple[jax.Array, dict[str, jax.Array]]:
        """Logits [N, 10] of images [N, 32, 32, 3]."""
        x = Conv(24, (2, 2), padding="VALID", dtype=self.dtype, name="whiten")(x)
        x = nn.gelu(x, approximate=False)  # [N, 31, 31, 24]
        for i, width in enumerate((64, 256, 256), start=1):
            x = Group(width, self.dtype, name=f"group{i}")(x, train=train)
        x = max_pool(x, 3)[:, 0, 0]  # [N, 256]
        x = nn.Dense(10, use_bias=False, dtype=self.dtype, name="head")(x)
        logits = x.astype(jnp.float32) / 256
        return (logits, {}) if endpoints else logits
