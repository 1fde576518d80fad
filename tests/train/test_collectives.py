"""What the devices tell each other in a step, read in the trainer's own program."""

import json
import os
import subprocess
import sys

import jax
import pytest

from benchmarks.scaling import collectives
from flaxcnn.train.loop import Trainer
from tests.paths import ROOT

# A line for each network and mode: the state's bytes, the collectives of a step.
SCRIPT = """
import json, sys
from pathlib import Path
import jax
from benchmarks.scaling import collectives
from flaxcnn.train.config import load_config
from flaxcnn.train.loop import Trainer

options = {"data.image_size": "12", "data.translate": "1", "data.flip": "true"}
for name in ("strided_cnn_a", "resnet20_cifar"):
    for parallel in ("jit", "pmap"):
        config = load_config(
            f"configs/debug.py:{name}", {**options, "parallel": parallel}
        )
        trainer = Trainer(config, Path(sys.argv[1]) / name / parallel)
        variables = trainer.devices.local(trainer.state).variables
        size = lambda tree: sum(x.nbytes for x in jax.tree.leaves(tree))
        print(json.dumps([
            name, parallel, size(variables["params"]),
            size(variables.get("batch_stats", {})),
            collectives(trainer._compiled("training", range(1)).as_text()),
        ]))
        trainer.close()
"""

# Max pooling and its gradient, a few samples of each device at a time.
POOL = """
import jax, jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from benchmarks.scaling import collectives
from flaxcnn.layers import max_pool

spread = NamedSharding(Mesh(jax.devices(), "data"), PartitionSpec("data"))
x = jax.ShapeDtypeStruct((8, 32, 32, 96), jnp.float32, sharding=spread)
step = jax.jit(jax.value_and_grad(lambda x: (max_pool(x, 3, 2) ** 2).sum()))
program = step.lower(x).compile().as_text()
print(" while(" in program, *map(tuple, collectives(program)))
"""


# The kernel's gradient of convolutions, of maps so large that it takes a few samples of
# each device at a time.
CONVOLUTIONS = """
import jax, jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from benchmarks.scaling import collectives
from flaxcnn.layers import conv

mesh, ones = Mesh(jax.devices(), "data"), ((1, 1), (1, 1))
spread = NamedSharding(mesh, PartitionSpec("data"))
same = NamedSharding(mesh, PartitionSpec())
for channels, kernel, groups in ((64, 3, 1), (2, 5, 1), (8, 3, 8)):
    shapes = (8, 96, 96, channels), (kernel, kernel, channels // groups, channels)
    x, k = (jax.ShapeDtypeStruct(shape, jnp.float32, sharding=where)
            for shape, where in zip(shapes, (spread, same)))
    loss = lambda k, x: (conv(x, k, padding=ones, groups=groups) ** 2).sum()
    program = jax.jit(jax.grad(loss)).lower(k, x).compile().as_text()
    print(" while(" in program, *{kind for kind, _ in collectives(program)})
"""


def run_on(devices, script, *arguments):
    flags = f"--xla_force_host_platform_device_count={devices}"
    env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [sys.executable, "-c", script, *arguments], env=env, cwd=ROOT,
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip


def test_one_device_talks_to_nobody(debug_config, tmp_path):
    config = debug_config("strided_cnn_a", data__image_size=12)
    trainer = Trainer(config, tmp_path)
    assert jax.device_count() == 1
    assert collectives(trainer._compiled("training", range(1)).as_text()) == []
    trainer.close()


def test_bytes_of_collectives():
    """Of a program by hand: a scalar, an asynchronous tuple, no collective."""
    program = """
      %a = s32[] all-reduce(%x), channel_id=1, to_apply=%add
      %b = (f32[96]{0}, bf16[3,3,1,2]{3,2,1,0}, /*index=2*/f32[]) all-reduce-start(%y)
      %b.1 = (f32[96]{0}, bf16[3,3,1,2]{3,2,1,0}, f32[]) all-reduce-done(%b)
      %c = f32[8,2]{1,0} all-gather(%a), dimensions={0}
      %d = f32[4]{0} fusion(%all-reduce.1), kind=kLoop, calls=%f
    """
    found = [("all-reduce", 4), ("all-reduce", 384 + 36 + 4), ("all-gather", 64)]
    assert collectives(program) == found


def test_max_pooling_stays_on_its_device():
    done = run_on(2, POOL)
    assert done.stdout.split("\n")[0] == "True ('all-reduce', 4)", done.stderr


def test_gradients_of_large_maps_move_sums_alone():
    done = run_on(2, CONVOLUTIONS)
    assert done.stdout == "True all-reduce\n" * 3, done.stderr


@pytest.mark.long
@pytest.mark.parametrize("devices", [2, 4, 8])
def test_gradients_cross_the_devices_once_a_step(tmp_path, devices):
    done = run_on(devices, SCRIPT, str(tmp_path))
    assert done.returncode == 0, done.stderr
    rows = [json.loads(x) for x in done.stdout.splitlines() if x.startswith("[")]
    assert len(rows) == 4
    for name, parallel, parameters, statistics, found in rows:
        # Neither the batch nor its augmentation moves, only sums do.
        assert {kind for kind, _ in found} == {"all-reduce"}
        sizes = sorted(size for _, size in found)
        metrics = 8  # loss and correct
        rest = sum(sizes) - parameters - metrics
        if not statistics:
            # The number of correct answers is an integer: an all-reduce of its own.
            assert sizes == [4, parameters + 4]
        elif parallel == "pmap":
            assert sizes == [4, parameters + statistics + 4]
        else:
            # BatchNorm over all devices: two sums, and what they are shifted by. The
            # gradients of its parameters are the sums of its backward pass.
            assert statistics <= rest <= 2 * statistics, name
            assert sizes[-1] > 0.9 * parameters
