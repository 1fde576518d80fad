"""Seconds to the first result of each model's jitted forward pass, one image.

    python -m benchmarks.first_result                      # every registered name
    python -m benchmarks.first_result resnet152 densenet201

Tracing, compilation and the first run at the standard size, without the drawing of
weights and without a compilation cache; beside it the same call once more. Updates the
rows of results/first_result.csv.
"""

import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp

from benchmarks.report import environment
from flaxcnn import create_model, list_models, model_info
from flaxcnn.reproduce.table import read_csv, write_csv

FILE = Path(__file__).parents[1] / "results" / "first_result.csv"


def first_result(name: str) -> tuple[float, float]:
    """Seconds of the first call and of the second."""
    model, shape = create_model(name), (1, *model_info(name).input_size)
    x = jnp.zeros(shape)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))
    variables = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), shapes)
    forward = jax.jit(lambda variables, x: model.apply(variables, x, train=False))
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        jax.block_until_ready(forward(variables, x))
        seconds.append(time.perf_counter() - started)
    return seconds[0], seconds[1]


def main(names: list[str]) -> None:
    found = environment()
    cpu, cores = found["cpu"], found["cores"]
    versions = "; ".join(f"{k} {found['versions'][k]}" for k in ("python", "jax"))
    jax.config.update("jax_enable_compilation_cache", False)
    rows = {row["name"]: row for row in read_csv(FILE)}
    for name in names or list_models():
        first, second = first_result(name)
        print(f"{name:26} {first:6.1f} s {second:8.3f} s", flush=True)
        rows[name] = {
            "name": name, "first_seconds": f"{first:.1f}",
            "second_seconds": f"{second:.3f}", "cpu": f"{cores} x {cpu}",
            "versions": versions,
        }  # fmt: skip
    write_csv(FILE, [rows[name] for name in list_models() if name in rows])


if __name__ == "__main__":
    main(sys.argv[1:])
