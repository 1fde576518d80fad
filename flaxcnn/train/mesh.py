"""Devices: one program over a mesh (jit), or one copy a device (pmap)."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from flaxcnn.errors import FlaxcnnError, reason
from flaxcnn.xla import compiler_options

AXIS = "data"


def initialize_distributed(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> None:
    """Joins the processes of a multi-host run; without arguments, the cluster's.

    Slurm, Open MPI, GKE and Cloud TPU are recognised by jax itself.

    Raises:
      FlaxcnnError: no such cluster, an argument is missing, or nobody answers.
    """
    try:
        jax.distributed.initialize(coordinator, num_processes, process_id)
    except (ValueError, RuntimeError) as error:
        raise FlaxcnnError(
            f"cannot join the other processes ({reason(error)}); on a cluster that jax "
            "does not know, pass --coordinator, --num_processes and --process_id"
        ) from error


class JitDevices:
    """The batch is sharded over the mesh, the state lives on every device.

    BatchNorm sees the global batch.
    """

    axis_name: str | None = None

    def __init__(self) -> None:
        self.mesh = make_mesh()
        self.replicated = NamedSharding(self.mesh, P())

    def replicate(self, tree: Any) -> Any:
        """Puts host values, or those of one device, on every device."""
        return jax.device_put(tree, self.replicated)

    def local(self, tree: Any) -> Any:
        """The inverse of `replicate`: without an axis of devices."""
        return tree

    def shard(self, feeds: Any) -> Any:
        """Spreads [steps, N, ...], this process's part of N, over the devices."""
        sharding = NamedSharding(self.mesh, P(None, AXIS))
        return jax.tree.map(
            lambda x: jax.make_array_from_process_local_data(sharding, x), feeds
        )

    def constrain(self, batch: Any) -> Any:
        """Inside the program: the batch [N, ...] stays spread over the devices."""
        return jax.lax.with_sharding_constraint(
            batch, NamedSharding(self.mesh, P(AXIS))
        )

    def compile(self, many: Callable, donate: bool = True) -> Any:
        """Makes a program of `steps.repeat`'s function; may use up its state."""
        return jax.jit(
            many,
            donate_argnums=(0,) if donate else (),
            compiler_options=compiler_options(),
        )


class PmapDevices:
    """`jax.pmap`: each device has its own copy and its part of the batch.

    BatchNorm sees the device's part; gradients and statistics are averaged.
    """

    axis_name = AXIS

    def __init__(self) -> None:
        mesh = make_mesh()
        self.replicated = NamedSharding(mesh, P())
        self.stacked = NamedSharding(mesh, P(AXIS))
        self.count = jax.local_device_count()

    def replicate(self, tree: Any) -> Any:
        def stack(x: Any) -> jax.Array:
            copies = np.broadcast_to(np.asarray(x), (self.count, *np.shape(x)))
            return jax.make_array_from_process_local_data(self.stacked, copies)

        return jax.tree.map(stack, tree)

    def local(self, tree: Any) -> Any:
        def first(x: jax.Array) -> jax.Array:
            copy = np.asarray(x.addressable_shards[0].data)[0]
            return jax.make_array_from_process_local_data(self.replicated, copy)

        return jax.tree.map(first, tree)

    def shard(self, feeds: Any) -> Any:
        def split(x: np.ndarray) -> jax.Array:  # [steps, N] to [devices, steps, n]
            steps, n = x.shape[:2]
            parts = x.reshape(steps, self.count, n // self.count, *x.shape[2:])
            parts = np.ascontiguousarray(np.swapaxes(parts, 0, 1))
            return jax.make_array_from_process_local_data(self.stacked, parts)

        return jax.tree.map(split, feeds)

    def constrain(self, batch: Any) -> Any:
        return batch

    def compile(self, many: Callable, donate: bool = True) -> Any:
        return jax.pmap(
            many, AXIS, in_axes=(0, 0, 0, None), donate_argnums=(0,) if donate else ()
        )


def make_devices(
    parallel: str, batch_size: int, grad_accum: int = 1
) -> JitDevices | PmapDevices:
    """The devices of a run, by `config.parallel`.

    Raises:
      FlaxcnnError: jax finds no devices, or they do not get equal parts of a batch.
    """
    try:
        parts = jax.device_count() * grad_accum
    except (RuntimeError, AssertionError) as error:
        raise FlaxcnnError(
            f"jax finds no devices ({reason(error)}); check "
            "JAX_PLATFORMS, and for a GPU pip install -e '.[cuda]'"
        ) from error
    if batch_size % parts:
        accumulated = f" x {grad_accum} micro-batches" if grad_accum > 1 else ""
        raise FlaxcnnError(
            f"config.batch_size={batch_size} is not divisible by "
            f"{jax.device_count()} devices{accumulated}; "
            f"use {max(1, batch_size // parts) * parts}"
        )
    return PmapDevices() if parallel == "pmap" else JitDevices()


def any_process(flag: bool) -> bool:
    """Is the flag set in any process? All processes must ask together."""
    if jax.process_count() == 1:
        return flag
    flags = jax.make_array_from_process_local_data(
        NamedSharding(make_mesh(), P(AXIS)), np.full(jax.local_device_count(), flag)
    )
    return bool(_any(flags))


@jax.jit
def _any(flags: jax.Array) -> jax.Array:
    return flags.any()


def make_mesh() -> jax.sharding.Mesh:
    """All devices along one axis."""
    return jax.make_mesh((jax.device_count(),), (AXIS,), axis_types=(AxisType.Auto,))
