"""How programs are compiled: options of XLA, the cache on disk."""

import os
import platform
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxcnn import xla
from flaxcnn.layers import conv
from tests.paths import ROOT


def test_options_take_convolutions_from_ynnpack_and_leave_it_sums():
    if jax.default_backend() != "cpu":
        pytest.skip("options of the CPU")
    x = jnp.asarray(np.random.default_rng(0).standard_normal((8, 32, 32, 64)), "f4")
    kernel = jnp.ones((3, 3, 64, 64))

    def convolution(x):
        return conv(x, kernel, padding=((1, 1), (1, 1)))

    def programs(f):
        return [
            jax.jit(f, compiler_options=options).lower(x).compile()
            for options in (None, xla.compiler_options())
        ]

    plain, ours = programs(convolution)
    assert "__ynn_fusion" in plain.as_text()
    assert "__ynn_fusion" not in ours.as_text()
    np.testing.assert_allclose(plain(x), ours(x), rtol=1e-4, atol=1e-3)
    plain, ours = programs(lambda x: x.sum((0, 1, 2)))
    assert "__ynn_fusion" in ours.as_text()
    np.testing.assert_allclose(ours(x), np.array(x, "f8").sum((0, 1, 2)), atol=1e-2)


def test_unknown_options_are_left_out(monkeypatch):
    if jax.default_backend() != "cpu":
        pytest.skip("options of the CPU")
    known = {"xla_disable_hlo_passes": "cse_barrier_expander"}
    monkeypatch.setattr(xla, "CPU", {"xla_cpu_no_such_option": "1", **known})
    assert xla.compiler_options.__wrapped__() == known


def test_without_a_place_there_is_no_cache(tmp_path, monkeypatch):
    directory = jax.config.jax_compilation_cache_dir
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        assert xla.use_compilation_cache() is None
        assert jax.config.jax_compilation_cache_dir is None
    finally:
        jax.config.update("jax_compilation_cache_dir", directory)


@pytest.mark.long
@pytest.mark.parametrize("enabled", ["true", "false"])
def test_a_second_run_compiles_nothing(tmp_path, enabled):
    """And what it trains is the same, bit by bit."""
    hidden = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
    environment = {key: v for key, v in os.environ.items() if key not in hidden}
    environment |= {
        "XDG_CACHE_HOME": str(tmp_path),
        "JAX_ENABLE_COMPILATION_CACHE": enabled,
    }
    kept = tmp_path / "flaxcnn" / "xla"

    def run(name):
        command = [
            sys.executable, ROOT / "train.py", "--config", f"{ROOT}/configs/debug.py",
            "--config.steps=2", "--workdir", tmp_path / name,
        ]  # fmt: skip
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert ("compiled programs are kept in" in done.stdout) == (enabled == "true")
        files = {file.name for file in kept.glob("*") if "-cache" in file.name}
        return files, (tmp_path / name / "model.safetensors").read_bytes()

    (first, weights), (second, again) = run("a"), run("b")
    assert first == second
    assert bool(first) == (enabled == "true")
    assert weights == again


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_is_given_back():
    code = """
from flaxcnn.xla import release_memory

def size():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

kept = []
for _ in range(30_000):  # 4 kB each: too small to be given back when they are freed
    kept += [bytearray(4000), bytearray(100)]
del kept[::2]
before = size()
release_memory()
print(before - size())
"""
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert int(run.stdout) > 50e6
