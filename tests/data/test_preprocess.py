"""Preprocessing against closed forms and an independent float64 reference."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxcnn.data import preprocess
from flaxcnn.data.preprocess import apply, fit
from flaxcnn.errors import FlaxcnnError
from tests.paths import REAL_DATA

SHAPE = (6, 5, 3)
SIZE = 6 * 5 * 3


@pytest.fixture
def images() -> np.ndarray:
    """400 images with correlated pixels and channels of different spread."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(400, SIZE)) @ rng.normal(size=(SIZE, SIZE)) / SIZE**0.5
    noise = noise.reshape(-1, *SHAPE) * (20, 40, 30) + (120, 130, 90)
    return noise.clip(0, 255).astype(np.uint8)


def _apply(fitted: preprocess.Preprocess, images: np.ndarray) -> np.ndarray:
    run = jax.jit(apply, static_argnums=0)
    out = run(fitted.kind, fitted.arrays, jnp.asarray(images))
    assert out.dtype == jnp.float32
    assert out.shape == images.shape
    return np.asarray(out)


def _reference_gcn(images: np.ndarray) -> np.ndarray:
    """pylearn2's global_contrast_normalize, image by image in float64."""
    rows = []
    for image in images:
        row = image.astype(np.float64).ravel()
        row = row - row.mean()
        divisor = np.sqrt((row**2).sum()) / 55.0
        rows.append(row / (1.0 if divisor < 1e-8 else divisor))
    return np.array(rows)


def _reference_zca(train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """pylearn2's ZCA: mean and matrix, by a full covariance and an SVD."""
    x = _reference_gcn(train)
    mean = x.mean(0)
    covariance = np.cov(x.T, bias=True) + 0.1 * np.eye(x.shape[1])
    u, s, _ = np.linalg.svd(covariance)
    return mean, u @ np.diag(s**-0.5) @ u.T


def test_unit(images: np.ndarray) -> None:
    out = _apply(fit("unit", images), images)
    np.testing.assert_allclose(out, images / 255.0, atol=1e-7)


def test_standardize_gives_mean_0_and_std_1(images: np.ndarray) -> None:
    from sklearn.preprocessing import StandardScaler

    fitted = fit("standardize", images)
    scaler = StandardScaler().fit(images.reshape(-1, 3) / 255.0)
    np.testing.assert_allclose(fitted.arrays["mean"], scaler.mean_, rtol=1e-6)
    np.testing.assert_allclose(fitted.arrays["std"], scaler.scale_, rtol=1e-6)
    out = _apply(fitted, images)
    np.testing.assert_allclose(out.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(out.std((0, 1, 2)), 1, atol=1e-5)


def test_standardize_of_a_constant_channel_is_0(images: np.ndarray) -> None:
    images[..., 1] = 137
    out = _apply(fit("standardize", images), images)
    np.testing.assert_allclose(out[..., 1], 0, atol=1e-6)


def test_imagenet(images: np.ndarray) -> None:
    out = _apply(fit("imagenet", images), images)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(out, (images / 255.0 - mean) / std, atol=1e-5)


def test_inception_is_the_input_transform_of_torchvision(images: np.ndarray) -> None:
    """Its GoogLeNet and Inception v3 undo the ImageNet normalization inside."""
    out = _apply(fit("inception", images), images)
    x = _apply(fit("imagenet", images), images)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(out, x * (std / 0.5) + (mean - 0.5) / 0.5, atol=1e-5)
    np.testing.assert_allclose(out, images / 127.5 - 1, atol=1e-5)


def test_imagenet_255_is_caffes(images: np.ndarray) -> None:
    out = _apply(fit("imagenet_255", images), images)
    mean = 255 * np.array([0.48235, 0.45882, 0.40784])
    np.testing.assert_allclose(out, images - mean, atol=1e-3)


def test_caffe_is_blue_green_red_less_the_mean(images: np.ndarray) -> None:
    out = _apply(fit("caffe", images), images)
    red, green, blue = np.moveaxis(images.astype(np.float64), -1, 0)
    expected = np.stack([blue - 103.939, green - 116.779, red - 123.68], -1)
    np.testing.assert_allclose(out, expected, atol=1e-4)
    rgb = _apply(fit("imagenet_255", images), images)
    np.testing.assert_allclose(out[..., ::-1], rgb, atol=0.7)  # their means differ


def test_gcn_rows_have_mean_0_and_norm_55(images: np.ndarray) -> None:
    identity = {"mean": np.zeros(SIZE, np.float32), "matrix": np.eye(SIZE)}
    rows = _apply(preprocess.Preprocess("gcn_zca", identity), images)
    rows = rows.reshape(len(rows), -1)
    np.testing.assert_allclose(rows.mean(1), 0, atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 55, rtol=1e-5)
    np.testing.assert_allclose(rows, _reference_gcn(images), atol=1e-3)


@pytest.mark.parametrize("chunk", [64, 2_000])
def test_gcn_zca_against_the_reference(
    chunk: int, images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preprocess, "CHUNK", chunk)
    train, test = images[:300], images[300:]
    fitted = fit("gcn_zca", train, tmp_path)
    mean, matrix = _reference_zca(train)
    np.testing.assert_allclose(fitted.arrays["mean"], mean, atol=1e-5)
    np.testing.assert_allclose(fitted.arrays["matrix"], matrix, atol=1e-5)
    expected = (_reference_gcn(test) - mean) @ matrix
    out = _apply(fitted, test).reshape(len(test), -1)
    np.testing.assert_allclose(out, expected, atol=1e-3)


def test_whitened_covariance_is_closed_form(images: np.ndarray, tmp_path: Path) -> None:
    """Eigenvalues become lambda / (lambda + 0.1): 1 but for the regularizer."""
    fitted = fit("gcn_zca", images, tmp_path)
    matrix = fitted.arrays["matrix"]
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-6)
    out = _apply(fitted, images).reshape(len(images), -1).astype(np.float64)
    np.testing.assert_allclose(out.mean(0), 0, atol=1e-4)
    values = np.linalg.eigvalsh(np.cov(_reference_gcn(images).T, bias=True))
    whitened = np.linalg.eigvalsh(np.cov(out.T, bias=True))
    np.testing.assert_allclose(whitened, values / (values + 0.1), atol=1e-4)
    assert whitened[SIZE // 2] > 0.9
    assert whitened[0] < 0.01  # GCN takes the mean away: no variance is left there


def test_a_constant_image_stays_finite(images: np.ndarray, tmp_path: Path) -> None:
    images[7] = 93
    fitted = fit("gcn_zca", images, tmp_path)
    out = _apply(fitted, images)
    assert np.isfinite(out).all()
    expected = -fitted.arrays["mean"] @ fitted.arrays["matrix"]
    np.testing.assert_allclose(out[7].ravel(), expected, atol=1e-3)


def test_the_cache_is_used_keyed_by_the_images_and_repaired(
    images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = fit("gcn_zca", images, tmp_path).arrays
    (file,) = tmp_path.iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(preprocess, "_fit_zca", None)  # fitting again would fail
        second = fit("gcn_zca", images, tmp_path).arrays
    assert {k: a.tobytes() for k, a in first.items()} == {
        k: a.tobytes() for k, a in second.items()
    }
    content = file.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]
    for damaged in content[:-2000], b"", b"garbage", flipped:
        file.write_bytes(damaged)
        again = fit("gcn_zca", images, tmp_path).arrays
        np.testing.assert_array_equal(again["matrix"], first["matrix"])
        assert [p.name for p in tmp_path.iterdir()] == [file.name]
        assert len(file.read_bytes()) == len(content)
    other = images.copy()
    other[0, 0, 0, 0] ^= 1
    fit("gcn_zca", other, tmp_path)
    fit("gcn_zca", images.reshape(-1, 5, 6, 3), tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_the_default_cache_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert preprocess.default_cache_dir() == Path("/cache/flaxcnn")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert preprocess.default_cache_dir() == Path.home() / ".cache" / "flaxcnn"


def test_an_unwritable_cache_costs_only_the_cache(
    images: np.ndarray, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("not a directory")
    fitted = fit("gcn_zca", images, tmp_path / "file")
    assert fitted.arrays["matrix"].shape == (SIZE, SIZE)


def test_errors(images: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(FlaxcnnError, match="did you mean standardize"):
        fit("standardise", images)
    with pytest.raises(FlaxcnnError, match="did you mean gcn_zca"):
        apply("gcn_zcb", {}, jnp.asarray(images))
    with pytest.raises(FlaxcnnError, match=r"49152 x 49152.*standardize"):
        fit("gcn_zca", np.zeros((1, 128, 128, 3), np.uint8), tmp_path)
    fitted = fit("gcn_zca", images, tmp_path)
    with pytest.raises(FlaxcnnError, match=r"is for 90 values.*\[8, 8, 1\]"):
        apply("gcn_zca", fitted.arrays, jnp.zeros((2, 8, 8, 1)))
    for kind in "imagenet", "caffe":
        fitted = fit(kind, images)
        for channels in 1, 4:
            with pytest.raises(FlaxcnnError, match="is for 3 values"):
                apply(kind, fitted.arrays, jnp.zeros((2, 8, 8, channels)))


@pytest.mark.long
@pytest.mark.skipif(
    not (REAL_DATA / "tfds").is_dir(), reason="needs ../shared/data/tfds"
)
def test_cifar10(tmp_path: Path) -> None:
    from flaxcnn.data.sources import as_arrays, load_source

    source = load_source("tfds:cifar10", "train", data_dir=str(REAL_DATA / "tfds"))
    images, _ = as_arrays(source)
    statistics = fit("standardize", images).arrays
    np.testing.assert_allclose(statistics["mean"], (0.4914, 0.4822, 0.4465), atol=1e-4)
    np.testing.assert_allclose(statistics["std"], (0.2470, 0.2435, 0.2616), atol=1e-4)
    out = _apply(fit("gcn_zca", images, tmp_path), images[:10_000])
    deviation = out.reshape(len(out), -1).std(0)
    assert 0.2 < deviation.min() < deviation.max() < 1.1
