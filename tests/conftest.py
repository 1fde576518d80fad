"""Shared by all tests: offline, caches and runs in temporary directories."""

import gc
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from flax.typing import Dtype

from flaxcnn.layers import BatchNorm, Conv, Dropout, global_avg_pool
from flaxcnn.registry import Info, register
from tests.paths import ROOT


@register("tiny_bn", info=Info(params=0, macs=0, input_size=(8, 8, 1), paper="tests"))
class TinyBatchNorm(nn.Module):
    """The smallest network with every kind of state."""

    num_classes: int = 10
    dropout: float = 0.0
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x, *, train, endpoints=False):
        x = Conv(8, (3, 3), 2, 1, use_bias=False, dtype=self.dtype, name="conv")(x)
        x = BatchNorm(dtype=self.dtype, name="bn")(x, train=train)
        x = Dropout(self.dropout)(nn.relu(x), train=train)
        x = global_avg_pool(x)
        x = nn.Dense(self.num_classes, name="fc")(x).astype(jnp.float32)
        return (x, {}) if endpoints else x


@pytest.fixture(scope="module", autouse=True)
def old_objects():
    """What earlier modules left is no garbage: to look again takes time."""
    gc.freeze()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def debug_config():
    """A function that makes the debug config with overrides."""
    from flaxcnn.train.config import load_config

    def make(model="allconv_mnist", **overrides):
        overrides = {key.replace("__", "."): str(v) for key, v in overrides.items()}
        return load_config(f"{ROOT}/configs/debug.py:{model}", overrides)

    return make


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory):
    """One for this process and those that it starts: they compile the same programs."""
    path = str(tmp_path_factory.mktemp("compiled"))
    os.environ["JAX_COMPILATION_CACHE_DIR"] = path
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    jax.config.update("jax_compilation_cache_dir", path)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


@pytest.fixture
def train_py():
    """A function that runs train.py: (arguments, devices=1) -> CompletedProcess."""

    def run(*arguments, devices=1, wait=True, **env):
        command = [sys.executable, str(ROOT / "train.py"), *map(str, arguments)]
        flags = f"--xla_force_host_platform_device_count={devices}"
        env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", **env}
        env["PYTHONPATH"] = str(ROOT)
        pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        if not wait:
            return subprocess.Popen(command, env=env, cwd=ROOT, **pipe)
        return subprocess.run(command, env=env, cwd=ROOT, timeout=300, **pipe)

    return run
