"""How the library's programs are compiled: options that make them fast, the cache."""

import ctypes
import functools
import gc
import os
import sys
from pathlib import Path

import jax

from flaxcnn.data.preprocess import default_cache_dir

# On CPU XLA gives convolutions, products and sums to YNNPACK, whose sums are several
# times faster than XLA's own, its convolutions slower. And it would remove the barriers
# by which `jax.checkpoint` computes again what it then would keep after all.
CPU: dict[str, str | bool] = {
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE",
    "xla_disable_hlo_passes": "cse_barrier_expander",
}


@functools.cache
def compiler_options() -> dict[str, str | bool]:
    """Options for `jax.jit(..., compiler_options=...)` on the default platform.

    Empty where there is nothing to gain; without those that this version of XLA does
    not know. The trainer, `flaxcnn predict` and `flaxcnn evaluate` use them.
    """
    if jax.default_backend() != "cpu":
        return {}
    nothing = jax.jit(lambda: 0).lower()

    def known(option: dict[str, str | bool]) -> bool:
        try:
            nothing.compile(compiler_options=option)
        except jax.errors.JaxRuntimeError:  # "No such compile option"
            return False
        return True

    return {key: value for key, value in CPU.items() if known({key: value})}


def use_compilation_cache() -> Path | None:
    """Keeps compiled programs on disk, for the next run of the same.

    In the directory that jax is told of (`JAX_COMPILATION_CACHE_DIR`), else `xla` in
    flaxcnn's own; `JAX_ENABLE_COMPILATION_CACHE=false` switches it off.

    Returns:
      The directory; None: there is no cache, or no place for ours.
    """
    if not getattr(jax.config, "jax_enable_compilation_cache"):  # noqa: B009
        return None
    name = "jax_compilation_cache_dir"
    directory: str | None = getattr(jax.config, name)
    if not directory:
        ours = default_cache_dir() / "xla"
        try:
            ours.mkdir(parents=True, exist_ok=True)
        except OSError:
            return None
        directory = str(ours)
        jax.config.update(name, directory)
        if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
            # The many small programs of the start take longest together.
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    return Path(directory)


def release_memory() -> None:
    """Gives what compiling has left over back to the system.

    glibc keeps memory that is freed: half a gigabyte after ResNet-50's train step.
    """
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other libraries: none
        if trim:
            trim(0)
