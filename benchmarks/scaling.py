"""What a training step costs, counted in its compiled program, and at how many GPUs.

    python -m benchmarks.scaling                    # everything
    python -m benchmarks.scaling depth seconds      # these sections alone
    python -m benchmarks.scaling model              # the tables alone, nothing compiled

The trainer's own step is compiled for 1 to 8 simulated devices and read: operations,
bytes, temporary memory, collectives. Nothing runs but in the section `seconds`.
Convolutions are counted in the form that a GPU gets; `seconds` runs that of the CPU.
Writes results/benchmarks/scaling.json and .md, and the table of docs/scaling.md.
"""

import datetime
import json
import math
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np

from benchmarks.report import environment
from benchmarks.scaling_model import forecast_table, rooflines
from flaxcnn import FlaxcnnError
from flaxcnn.errors import unknown

ROOT = Path(__file__).parents[1]
FILE = ROOT / "results" / "benchmarks" / "scaling.json"
DOCUMENT = ROOT / "docs" / "scaling.md"
BEGIN, END = "<!-- by python -m benchmarks.scaling -->", "<!-- until here -->"
STEPS = 5  # timed, after a first one

BYTES = {"pred": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
# The program is only read: its machine code may be slow. Collectives are the same.
FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
LARGE = 1 << 20  # bytes of a collective of gradients; BatchNorm's are of kilobytes
KINDS = "all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute"


class Cell(NamedTuple):
    """A step to count; the batch is of each device."""

    net: str
    size: int
    batch: int
    devices: int = 1
    parallel: str = "jit"


SECTIONS = {
    "devices": [
        Cell(net, size, batch, devices, parallel)
        for net, size, batch in (("allcnn_c", 32, 128), ("resnet50", 224, 32))
        for devices in (1, 2, 4, 8)
        for parallel in ("jit", "pmap")
    ],
    "batch": [
        Cell(net, size, batch)
        for net, size in (("allcnn_c", 32), ("resnet50", 224))
        for batch in (8, 32, 128)
    ],
    "size": [
        *(Cell("allcnn_c", size, 32) for size in (32, 64, 96)),
        *(Cell("resnet50", size, 32) for size in (64, 128, 224)),
    ],
    "depth": [Cell(f"resnet{depth}", 224, 32) for depth in (18, 34, 50, 101, 152)],
    # As many images in all where the devices differ: they share the same cores.
    "seconds": [
        *(Cell("allcnn_c", 32, batch) for batch in (8, 32, 128)),
        Cell("allcnn_c", 64, 8),
        *(Cell(f"resnet{depth}", 64, 8) for depth in (18, 34, 50)),
        *(Cell("allcnn_c", 32, 32 // devices, devices) for devices in (2, 4, 8)),
    ],
}


class Collective(NamedTuple):
    kind: str
    bytes: int


def collectives(program: str) -> list[Collective]:
    """The collectives in the text of a compiled program, each once, and their bytes."""
    pattern = rf" = (\S+|\(.*?\)) ({KINDS})(?:-start)?\("
    return [
        Collective(kind, sum(_bytes(*shape) for shape in re.findall(
            r"(\w+)\[([\d,]*)\]", shapes)))
        for shapes, kind in re.findall(pattern, program)
    ]  # fmt: skip


def _bytes(dtype: str, shape: str) -> int:
    return BYTES[dtype] * math.prod(int(n) for n in shape.split(",") if n)


def lower(cell: Cell) -> tuple[Any, dict[str, int]]:
    """The step, traced with shapes alone, and the bytes of its state on a device."""
    import jax
    import jax.numpy as jnp

    from flaxcnn import create_model, default_config
    from flaxcnn.data import preprocess
    from flaxcnn.data.pipeline import make_gather
    from flaxcnn.train.config import Durations
    from flaxcnn.train.mesh import PmapDevices, make_devices
    from flaxcnn.train.optim import make_optimizer
    from flaxcnn.train.state import init_state
    from flaxcnn.train.steps import make_train_step, repeat

    total = cell.batch * cell.devices
    devices = make_devices(cell.parallel, total)
    optim = default_config().optim
    optim.momentum = 0.9
    tx = make_optimizer(optim, Durations(total, total), total=1000)
    model = create_model(cell.net, num_classes=10 if cell.net == "allcnn_c" else 1000)
    sample = jnp.zeros((1, cell.size, cell.size, 3))
    state = jax.eval_shape(lambda: init_state(model, tx, sample, 0, ema=False))
    step = make_train_step(
        model, tx, num_classes=model.num_classes, axis_name=devices.axis_name
    )
    many = devices.compile(repeat(step, make_gather("imagenet", devices.constrain)))

    def place(x: Any) -> Any:
        if isinstance(devices, PmapDevices):
            shape = (cell.devices, *x.shape)
            return jax.ShapeDtypeStruct(shape, x.dtype, sharding=devices.stacked)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=devices.replicated)

    shape = (1, total, cell.size, cell.size, 3)
    feeds = devices.shard({
        "image": jnp.zeros(shape, jnp.uint8), "label": jnp.zeros(shape[:2], jnp.int32),
    })  # fmt: skip
    kind = preprocess.fit("imagenet", np.zeros((1, 1, 1, 3), np.uint8))
    resident = {"preprocess": jax.tree.map(jnp.asarray, kind.arrays)}
    resident = jax.tree.map(place, resident)
    size = {
        key: sum(x.dtype.itemsize * x.size for x in jax.tree.leaves(tree))
        for key, tree in (
            ("parameters", state.variables["params"]),
            ("statistics", state.variables.get("batch_stats", {})),
        )
    }
    arguments = (jax.tree.map(place, state), resident, feeds)
    return many.lower(*arguments, 1), {**size, "arguments": arguments}


def as_for_gpu() -> AbstractContextManager:
    """Traces the branches that a GPU takes: stock convolutions.

    Those of the CPU loop over parts of the batch, of which XLA counts one.
    """
    return mock.patch(
        "jax.lax.platform_dependent", lambda *args, default, **_: default(*args)
    )


def count(cell: Cell, timed: bool) -> dict[str, Any]:
    """What the step's compiled program needs on one device; its seconds if timed."""
    with nullcontext() if timed else as_for_gpu():
        lowered, size = lower(cell)
    arguments = size.pop("arguments")
    started = time.perf_counter()
    program = lowered.compile(None if timed else FAST)
    seconds = time.perf_counter() - started
    if timed:
        return {"step_seconds": step_seconds(program, arguments)}
    found = collectives(program.as_text())
    cost, memory = program.cost_analysis(), program.memory_analysis()
    large = [c.bytes for c in found if c.bytes >= LARGE]
    return {
        "parameter_bytes": size["parameters"],
        "statistic_bytes": size["statistics"],
        "operations": cost["flops"],
        "bytes_accessed": cost["bytes accessed"],
        "temporary_bytes": memory.temp_size_in_bytes,
        "collectives": len(found),
        "collective_bytes": sum(c.bytes for c in found),
        "large_collectives": len(large),
        "large_collective_bytes": sum(large),
        "kinds": sorted({c.kind for c in found}),
        "compile_seconds": round(seconds, 1),
    }


def step_seconds(program: Any, arguments: Any) -> list[float]:
    """Seconds of steps with zeros for data and weights, the first one left out."""
    import jax
    import jax.numpy as jnp

    state, resident, feeds = jax.tree.map(
        lambda x: jax.device_put(jnp.zeros(x.shape, x.dtype), x.sharding), arguments
    )
    seconds = []
    for _ in range(STEPS + 1):
        started = time.perf_counter()
        state, metrics = program(state, resident, feeds, 1)
        jax.block_until_ready((state, metrics))
        seconds.append(round(time.perf_counter() - started, 4))
    return seconds[1:]


def measure(section: str) -> Iterator[dict[str, Any]]:
    """A section's rows; a process for each number of devices."""
    cells = SECTIONS[section]
    for devices in sorted({cell.devices for cell in cells}):
        flags = f"--xla_force_host_platform_device_count={devices}"
        env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-m", "benchmarks.scaling", "--worker", section]
        with subprocess.Popen(
            [*command, str(devices)], env=env, cwd=ROOT, text=True,
            stdout=subprocess.PIPE,
        ) as process:  # fmt: skip
            assert process.stdout is not None
            for line in process.stdout:
                row = json.loads(line)
                print(*row.values(), flush=True)
                yield row
        if process.returncode:
            raise FlaxcnnError(f"the process of {devices} devices failed; see above")


def work(section: str, devices: int) -> None:
    """The process of one number of devices: a line for each of its rows."""
    for cell in SECTIONS[section]:
        if cell.devices == devices:
            row = count(cell, timed=section == "seconds")
            print(json.dumps({**cell._asdict(), **row}), flush=True)


def tables(results: dict[str, Any]) -> str:
    """All rows, as Markdown."""
    found = results["environment"]
    versions = ", ".join(f"{k} {v}" for k, v in found["versions"].items())
    parts = [
        "# Scaling: what a training step costs",
        "By `python -m benchmarks.scaling`; how to read it: "
        "[docs/scaling.md](../../docs/scaling.md). "
        f"{results['date']}, {found['cores']} cores of {found['cpu']}; {versions}.",
    ]
    for section, rows in results["sections"].items():
        parts += [f"## {section}", "\n".join(_table(section, rows))]
    return "\n\n".join(parts) + "\n"


def _table(section: str, rows: list[dict[str, Any]]) -> list[str]:
    cells = "| net | pixels | images a device | devices | by |"
    if section == "seconds":
        lines = [cells + " seconds a step, median | min-max |", "|---" * 7 + "|"]
    else:
        lines = [
            cells + " 1e9 operations | MB accessed | MB temporary | MB parameters "
            "| collectives | MB in them | of them large | MB in these |",
            "|---" * 13 + "|",
        ]
    for row in rows:
        start = [row[key] for key in Cell._fields]
        if section == "seconds":
            values = row["step_seconds"]
            rest = [f"{statistics.median(values):.3f}",
                    f"{min(values):.3f}-{max(values):.3f}"]  # fmt: skip
        else:
            rest = [
                f"{row['operations'] / 1e9:.1f}",
                f"{row['bytes_accessed'] / 1e6:.0f}",
                f"{row['temporary_bytes'] / 1e6:.0f}",
                f"{row['parameter_bytes'] / 1e6:.3f}",
                str(row["collectives"]),
                f"{row['collective_bytes'] / 1e6:.3f}",
                str(row["large_collectives"]),
                f"{row['large_collective_bytes'] / 1e6:.3f}",
            ]
        lines.append(f"| {' | '.join([*map(str, start), *rest])} |")
    return lines


def document(text: str, results: dict[str, Any]) -> str:
    """The text of docs/scaling.md with the forecast that the results give."""
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    return f"{before}{BEGIN}\n\n{forecast_table(results)}\n\n{END}{after}"


def write(results: dict[str, Any]) -> None:
    FILE.write_text(json.dumps(results, indent=1) + "\n")
    FILE.with_suffix(".md").write_text(tables(results))
    DOCUMENT.write_text(document(DOCUMENT.read_text(), results))


def main(argv: list[str]) -> None:
    if argv[:1] == ["--worker"]:
        work(argv[1], int(argv[2]))
        return
    for name in argv:
        if name not in (*SECTIONS, "model"):
            raise unknown("section", name, [*SECTIONS, "model"])
    results = json.loads(FILE.read_text()) if FILE.exists() else {"sections": {}}
    sections = results["sections"]
    for section in argv or SECTIONS:
        if section != "model":
            sections[section] = list(measure(section))
            results["environment"] = environment()
            results["date"] = datetime.date.today().isoformat()
            FILE.write_text(json.dumps(results, indent=1) + "\n")  # so far
    results["sections"] = {key: sections[key] for key in SECTIONS if key in sections}
    if not argv or "model" in argv:
        results["rooflines"] = rooflines()
    if "rooflines" in results:
        write(results)
        print(forecast_table(results))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except FlaxcnnError as error:
        sys.exit(f"error: {error}")
