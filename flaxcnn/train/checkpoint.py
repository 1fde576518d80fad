"""Checkpoints of a run, through orbax: asynchronous, atomic, newest and best."""

import contextlib
import errno
import functools
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as policies

from flaxcnn.errors import FlaxcnnError, reason
from flaxcnn.train.state import TrainState

FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


class Checkpoints:
    """`<workdir>/checkpoints`: the newest `keep` and the one of best test accuracy.

    A checkpoint is written beside the others and renamed when it is whole; an older
    one is deleted only after that. (One that is saved at a signal, before the test of
    its step, has no accuracy: it is never the best.)
    """

    def __init__(self, workdir: Path, keep: int):
        self.directory = (workdir / "checkpoints").resolve()
        for name in ("absl", "asyncio", "orbax"):  # they log what orbax raises as well
            logging.getLogger(name).setLevel(logging.CRITICAL)
        _ignore_closed_loops()
        newest = policies.LatestN(keep)
        best = policies.BestN(
            get_metric_fn=lambda metrics: metrics["accuracy"],
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        self.manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy([newest, best]),
                enable_async_checkpointing=True,
                cleanup_tmp_directories=True,  # of a process that was killed
            ),
        )

    @property
    def latest(self) -> int | None:
        """Step of the newest checkpoint."""
        return self.manager.latest_step()

    def save(
        self, step: int, state: TrainState, progress: dict, accuracy: float | None
    ) -> None:
        """Starts writing the state of `step`; returns as soon as it is copied.

        Args:
          step: number of steps done.
          state: replicated over the devices.
          progress: JSON, comes back from `restore`.
          accuracy: on the test split at this step, if it was measured.
        """
        if step == self.latest:
            return
        self.finish()  # the one before: what it took and whether it is whole
        size = sum(x.nbytes for x in jax.tree.leaves(state))
        if shutil.disk_usage(self.directory).free < 1.1 * size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                progress=ocp.args.JsonSave(progress),
            ),
            metrics=None if accuracy is None else {"accuracy": accuracy},
        )

    def restore(
        self, state: TrainState, sharding: jax.sharding.Sharding
    ) -> tuple[TrainState, dict] | None:
        """The newest state and its progress, or None.

        Args:
          state: a state of the same structure.
          sharding: where to put the restored arrays; the number of devices may
            differ from that of the run that saved them.
        """
        step = self.latest
        if step is None:
            return None
        target = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state
        )
        try:
            restored = self.manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(target),
                    progress=ocp.args.JsonRestore(),
                ),
            )
        except (OSError, ValueError, KeyError) as error:
            raise FlaxcnnError(
                f"{self.directory / str(step)}: cannot restore this checkpoint "
                f"({reason(error)}); delete it to continue from an older one"
            ) from error
        return restored.state, restored.progress

    def finish(self) -> None:
        """Waits until everything is on disk."""
        self.manager.wait_until_finished()

    def close(self) -> None:
        self.manager.close()


@contextlib.contextmanager
def clear_disk_errors(workdir: Path) -> Iterator[None]:
    """Says in one line that the disk is full, whoever noticed."""
    try:
        yield
    except Exception as error:
        if not _disk_full(error):
            raise
        found = (workdir / "checkpoints").glob("*")
        steps = [int(path.name) for path in found if path.name.isdigit()]
        raise FlaxcnnError(
            f"{workdir}: no room on the disk; "
            + (f"the checkpoint of step {max(steps)} is whole: " if steps else "")
            + "free some space and run the same command to continue"
        ) from error


def _disk_full(error: BaseException | None) -> bool:
    """Does the error, or what caused it, come from a full disk?"""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        if any(os.strerror(code) in str(error) for code in FULL):
            return True
        error = error.__cause__ or error.__context__
    return False


@functools.cache
def _ignore_closed_loops() -> None:
    """After one write failed, tensorstore's others report to a loop that is gone."""
    usual = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        kind, error = unraisable.exc_type, unraisable.exc_value
        if not (kind is RuntimeError and str(error) == "Event loop is closed"):
            usual(unraisable)

    sys.unraisablehook = hook
