"""Augmentation: distributions and exact shapes of what may happen to an image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from flaxcnn.data.augment import (
    cutmix,
    make_augment,
    mixup,
    random_cutout,
    random_flip,
    random_translate,
)
from flaxcnn.errors import FlaxcnnError
from flaxcnn.train.config import default_config

N = 2000
KEYS = jax.random.split(jax.random.key(0), N)
IMAGE = jnp.arange(1.0, 1 + 6 * 5 * 2).reshape(6, 5, 2)  # no two pixels alike, no zero


def test_half_of_the_images_are_mirrored():
    out = np.asarray(jax.vmap(random_flip, (0, None))(KEYS, IMAGE))
    mirrored = (out == np.asarray(IMAGE)[:, ::-1]).all((1, 2, 3))
    same = (out == np.asarray(IMAGE)).all((1, 2, 3))
    assert (mirrored ^ same).all()
    assert abs(mirrored.mean() - 0.5) < 4 * 0.5 / np.sqrt(N)


def test_every_translation_is_equally_likely():
    pixels = 2
    out = jax.vmap(random_translate, (0, None, None))(KEYS, IMAGE, pixels)
    padded = np.pad(IMAGE, ((2, 2), (2, 2), (0, 0)))
    crops = {
        padded[i : i + 6, j : j + 5].tobytes(): (i, j)
        for i in range(2 * pixels + 1)
        for j in range(2 * pixels + 1)
    }
    counts = dict.fromkeys(crops.values(), 0)
    for image in np.asarray(out):
        counts[crops[image.tobytes()]] += 1  # KeyError: no crop of the padded image
    expected = N / 25
    assert all(abs(c - expected) < 5 * np.sqrt(expected) for c in counts.values())


@pytest.mark.parametrize("size", [3, 4])
def test_cutout_zeroes_one_square_centred_anywhere(size):
    image = jnp.ones((12, 12, 1))
    out = jax.vmap(random_cutout, (0, None, None))(KEYS, image, size)
    cut = np.asarray(out)[..., 0] == 0
    inside = cut.sum((1, 2)) == size**2
    assert 0.3 < inside.mean() < 1  # the others reach over the border
    for square in cut:
        rows, columns = np.flatnonzero(square.any(1)), np.flatnonzero(square.any(0))
        assert square.sum() == len(rows) * len(columns) <= size**2
        assert len(rows) == rows[-1] - rows[0] + 1
        assert len(columns) == columns[-1] - columns[0] + 1
    corner = cut[:, 0, 0].mean()
    assert corner == pytest.approx((size // 2 + 1) ** 2 / 144, abs=0.02)


def batch(n=4):
    images = jax.random.normal(jax.random.key(1), (n, 8, 8, 3))
    return images, jax.nn.one_hot(jnp.arange(n), 10)


def test_mixup_blends_images_and_targets_by_the_same_share():
    images, targets = batch()
    shares = []
    for key in KEYS[:50]:
        mixed, soft = mixup(key, images, targets, 0.4)
        share = float(soft[0, 0])
        expected = share * images + (1 - share) * images[::-1]
        np.testing.assert_allclose(mixed, expected, atol=1e-5)
        shares.append(share)
    # Beta(a, a) has variance 1 / (4 (2a + 1)).
    assert np.var(shares) == pytest.approx(1 / (4 * 1.8), rel=0.5)


def test_cutmix_mixes_targets_by_the_pasted_area():
    images, targets = batch()
    areas = []
    for key in KEYS[:50]:
        mixed, soft = cutmix(key, images, targets, 1.0)
        pasted = np.asarray((mixed == images[::-1]).all((0, 3)))
        kept = np.asarray((mixed == images).all((0, 3)))
        assert (pasted ^ kept).all()
        assert float(soft[0, 3]) == pytest.approx(pasted.mean(), abs=1e-6)
        np.testing.assert_allclose(soft.sum(1), 1, rtol=1e-5)
        areas.append(pasted.mean())
    assert np.std(areas) > 0.1


def config(**data):
    return ConfigDict({**default_config().data, **data})


def test_a_sample_does_not_depend_on_its_neighbours():
    """What happens to it follows from its own key alone."""
    augment = jax.jit(make_augment(config(flip=True, translate=2, cutout=3), 10))
    images = jax.random.normal(jax.random.key(2), (8, 8, 8, 3))
    labels = jnp.arange(8)
    whole, targets = augment({"image": images, "label": labels}, KEYS[:8])
    part, _ = augment({"image": images[4:], "label": labels[4:]}, KEYS[4:8])
    np.testing.assert_array_equal(whole[4:], part)
    np.testing.assert_array_equal(targets, np.eye(8, 10))
    assert (np.asarray(whole) != np.asarray(images)).any()


def test_nothing_is_on_by_default():
    images = jax.random.normal(jax.random.key(2), (2, 8, 8, 3))
    out, _ = make_augment(config(), 10)(
        {"image": images, "label": jnp.arange(2)}, KEYS[:2]
    )
    np.testing.assert_array_equal(out, images)


def test_mixup_and_cutmix_exclude_each_other():
    with pytest.raises(FlaxcnnError, match="are both on; pick one"):
        make_augment(config(mixup=0.2, cutmix=1.0), 10)
