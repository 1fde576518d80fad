"""The check that every model makes of its input."""

import jax
import jax.numpy as jnp

from flaxcnn.errors import FlaxcnnError


def check_images(model: str, x: jax.Array, min_size: int = 1) -> None:
    """Raises FlaxcnnError unless x is a float batch [N, H, W, C] that is big enough.

    Args:
      model: the name to put into the message.
      x: the input.
      min_size: the smallest height and width that the model's arithmetic allows.
    """
    if x.ndim != 4:
        raise FlaxcnnError(
            f"{model}: input of shape {x.shape} is not a batch of images; "
            "pass [N, H, W, C]" + (" (x[None])" if x.ndim == 3 else "")
        )
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise FlaxcnnError(
            f"{model}: input is {x.dtype}; preprocess it to float, "
            "for example x.astype(jnp.float32) / 255"
        )
    if min(x.shape[1:3]) < min_size:
        raise FlaxcnnError(
            f"{model}: input of {x.shape[1]}x{x.shape[2]} pixels is too small; "
            f"resize it to at least {min_size}x{min_size}"
        )
