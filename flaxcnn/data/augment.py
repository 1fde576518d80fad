"""Augmentation of whole batches on the device, inside jit.

Images are already preprocessed, so that the zeros of a border or a cut-out square
are the mean. Each sample draws from its own key: what happens to it does not depend
on how the batch is spread over devices. (Mixup and cutmix pair samples: of the whole
batch under jit, of the device's part under pmap.)
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from flaxcnn.errors import FlaxcnnError

Array = jax.Array


def make_augment(
    data: ConfigDict, num_classes: int
) -> Callable[[dict[str, Array], Array], tuple[Array, Array]]:
    """The function of `config.data` that maps a batch to inputs and targets.

    Returns:
      `augment(batch, keys)`: a batch {"image": float [N, H, W, C], "label": int [N]}
      and one key a sample give images [N, H, W, C] and targets [N, num_classes].
    """
    if data.mixup and data.cutmix:
        raise FlaxcnnError(
            "config.data.mixup and config.data.cutmix are both on; pick one"
        )

    def augment(batch: dict[str, Array], keys: Array) -> tuple[Array, Array]:
        images = batch["image"]
        targets = jax.nn.one_hot(batch["label"], num_classes)
        keys = jax.vmap(lambda key: jax.random.split(key, 4))(keys)  # [N, 4]
        if data.flip:
            images = jax.vmap(random_flip)(keys[:, 0], images)
        if data.translate:
            images = jax.vmap(random_translate, (0, 0, None))(
                keys[:, 1], images, data.translate
            )
        if data.cutout:
            images = jax.vmap(random_cutout, (0, 0, None))(
                keys[:, 2], images, data.cutout
            )
        if data.mixup:
            images, targets = mixup(keys[0, 3], images, targets, data.mixup)
        if data.cutmix:
            images, targets = cutmix(keys[0, 3], images, targets, data.cutmix)
        return images, targets

    return augment


def random_flip(key: Array, image: Array) -> Array:
    """Mirrors an image [H, W, C] left to right, half of the time."""
    return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)


def random_translate(key: Array, image: Array, pixels: int) -> Array:
    """Shifts an image [H, W, C] by up to `pixels` each way; zeros move in.

    The same as padding with `pixels` zeros and cropping the old size at random.
    """
    # One gather of single pixels: XLA fuses what comes before and after with it, and
    # runs it faster than slices of a padded image, which it has to store first.
    height, width, _ = image.shape
    # `randint` would hash four times as much, for a bias of 1e-6 that nobody sees.
    shifts = jax.random.uniform(key, (2,)) * (2 * pixels + 1)
    top, left = shifts.astype(int) - pixels
    rows = (jnp.arange(height) + top).clip(0, height - 1)
    columns = (jnp.arange(width) + left).clip(0, width - 1)
    moved = image.at[rows[:, None], columns].get(mode="promise_in_bounds")
    return jnp.where(_box(height, width, -top, -left, height, width), moved, 0)


def random_cutout(key: Array, image: Array, size: int) -> Array:
    """Zeroes a square of `size` pixels, centred anywhere in an image [H, W, C].

    DeVries and Taylor, 2017 (arXiv:1708.04552): part of it may lie outside.
    """
    height, width, _ = image.shape
    top, left = jax.random.randint(key, (2,), 0, jnp.array([height, width])) - size // 2
    return jnp.where(_box(height, width, top, left, size, size), 0, image)


def mixup(
    key: Array, images: Array, targets: Array, alpha: float
) -> tuple[Array, Array]:
    """Blends each sample with its partner from the end of the batch.

    Zhang et al., 2018 (arXiv:1710.09412), one Beta(alpha, alpha) a batch.
    """
    share = jax.random.beta(key, alpha, alpha)

    def blend(x: Array) -> Array:
        return share * x + (1 - share) * x[::-1]

    return blend(images), blend(targets)


def cutmix(
    key: Array, images: Array, targets: Array, alpha: float
) -> tuple[Array, Array]:
    """Pastes a box of each sample's partner into it; targets mix by area.

    Yun et al., 2019 (arXiv:1905.04899): the box has 1 - Beta(alpha, alpha) of the
    area, one box a batch; the part of it outside the image does not count.
    """
    height, width = images.shape[1:3]
    share_key, place_key = jax.random.split(key)
    side = jnp.sqrt(1 - jax.random.beta(share_key, alpha, alpha))
    h = jnp.round(height * side).astype(int)
    w = jnp.round(width * side).astype(int)
    y, x = jax.random.randint(place_key, (2,), 0, jnp.array([height, width]))
    box = _box(height, width, y - h // 2, x - w // 2, h, w)
    area = box.mean()
    return (
        jnp.where(box, images[::-1], images),
        (1 - area) * targets + area * targets[::-1],
    )


def _box(
    height: int, width: int, top: Array, left: Array, h: Array | int, w: Array | int
) -> Array:
    """True inside the box, [height, width, 1]."""
    rows, columns = jnp.arange(height), jnp.arange(width)
    inside_rows = (rows >= top) & (rows < top + h)
    inside_columns = (columns >= left) & (columns < left + w)
    return (inside_rows[:, None] & inside_columns)[..., None]
