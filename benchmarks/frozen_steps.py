"""What freezing saves: training steps of a network, more and more of it frozen.

    python -m benchmarks.frozen_steps                 # squeezenet1_1, resnet18
    python -m benchmarks.frozen_steps vgg16

Batches of 32 images at the standard size, 10 classes, AdamW, float32, on the CPU. All
four ways take turns, five rounds of one step each after a first one; a step's seconds
are their median. Memory is the compiler's count of temporaries, and of the optimizer's
state. Writes results/frozen_steps.csv.
"""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks.report import environment
from flaxcnn import create_model, model_info
from flaxcnn.reproduce.table import write_csv
from flaxcnn.train.state import init_state
from flaxcnn.train.steps import make_train_step
from flaxcnn.transfer import CachedTrunk, FrozenTrunk, parameter_mask

FILE = Path(__file__).parents[1] / "results" / "frozen_steps.csv"
WAYS = ("all", "last:3", "head", "head, cached features")
BATCH, CLASSES, ROUNDS = 32, 10, 5


def prepare(name: str, way: str) -> tuple[Callable[[], None], dict[str, Any]]:
    """A function that takes one step, and what the program needs."""
    shape = model_info(name).input_size
    model = create_model(name, num_classes=CLASSES)
    trained = parameter_mask(way.partition(",")[0], model, shape)
    tx = optax.with_extra_args_support(optax.adamw(1e-3))
    state = init_state(model, tx, jnp.zeros((1, *shape)), 0, False, trained)
    images = jax.random.normal(jax.random.key(0), (BATCH, *shape))
    network: Any = model
    if "cached" in way:
        network = CachedTrunk(model, shape)
        images = jax.jit(network.features)(state.variables, images)
    elif way != "all":
        network = FrozenTrunk(model, shape, trained)
    batch = {"image": images, "label": jnp.arange(BATCH) % CLASSES}
    step = make_train_step(network, tx, num_classes=CLASSES, trained=trained)
    program = jax.jit(step, donate_argnums=0).lower(state, batch).compile()
    optimizer = sum(x.nbytes for x in jax.tree.leaves(state.opt_state))

    def run() -> None:
        nonlocal state
        state, _ = program(state, batch)
        jax.block_until_ready(state)

    memory = program.memory_analysis()
    assert memory is not None, "no account of memory on this platform"
    megabytes = memory.temp_size_in_bytes / 2**20
    return run, {
        "temporaries_mb": f"{megabytes:.1f}",
        "optimizer_mb": f"{optimizer / 2**20:.1f}",
    }


def measure(name: str) -> list[dict[str, Any]]:
    """A row for each way to train a network."""
    found = environment()
    programs = {way: prepare(name, way) for way in WAYS}
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for i in range(ROUNDS + 1):
        for way, (run, _) in programs.items():
            started = time.perf_counter()
            run()
            if i:
                seconds[way].append(time.perf_counter() - started)
    whole = statistics.median(seconds["all"])
    rows = []
    for way, (_, needs) in programs.items():
        median = statistics.median(seconds[way])
        rows.append({
            "name": name, "trained": way, "step_seconds": f"{median:.4f}",
            "times_faster": f"{whole / median:.1f}", **needs,
            "cpu": f"{found['cores']} x {found['cpu']}",
            "versions": f"python {found['versions']['python']}; "
                        f"jax {found['versions']['jax']}",
        })  # fmt: skip
        print(*rows[-1].values(), flush=True)
    return rows


def main(names: list[str]) -> None:
    rows = [
        row for name in names or ["squeezenet1_1", "resnet18"] for row in measure(name)
    ]
    write_csv(FILE, rows)


if __name__ == "__main__":
    main(sys.argv[1:])
