"""Dropout of elements and of whole feature maps."""

from flax import linen as nn
from jax import Array

from flaxcnn.errors import FlaxcnnError


class Dropout(nn.Module):
    """Zero each element with probability `rate`; scale the others by 1 / (1 - rate).

    Srivastava et al. 2014. Any shape; the identity unless `train`. Draws from the rng
    collection "dropout". Raises FlaxcnnError for a rate outside [0, 1].
    """

    rate: float

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        return _dropout(self.rate)(x, deterministic=not train)


class SpatialDropout(nn.Module):
    """Zero whole feature maps of [N, H, W, C]: one draw per sample and channel.

    Tompson et al. 2015, arXiv:1411.4280, section 3.2 (torch's Dropout2d). Otherwise as
    `Dropout`; raises FlaxcnnError also for an input that is not rank 4.
    """

    rate: float

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        if x.ndim != 4:
            raise FlaxcnnError(
                f"SpatialDropout input has shape {x.shape}; reshape it to [N, H, W, C]"
            )
        return _dropout(self.rate, (1, 2))(x, deterministic=not train)


def _dropout(rate: float, broadcast_dims: tuple[int, ...] = ()) -> nn.Dropout:
    if not 0 <= rate <= 1:
        raise FlaxcnnError(f"dropout rate {rate} is no probability; use 0 to 1")
    return nn.Dropout(rate, broadcast_dims)
