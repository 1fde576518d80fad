"""Checkpoints of a run, through orbax: asynchronous, atomic, newest and best."""

import contextlib
import errno
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as policies

from flaxcnn.errors import FlaxcnnError
from flaxcnn.train.state import TrainState

FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)

for name in ("absl", "orbax"):
    logging.getLogger(name).setLevel(logging.ERROR)


class Checkpoints:
    """`<workdir>/checkpoints`: the newest `keep` and the one of best test accuracy.

    A checkpoint is written beside the others and renamed when it is whole; an older
    one is deleted only after that.
    """

    def __init__(self, workdir: Path, keep: int):
        self.directory = (workdir / "checkpoints").resolve()
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
            ),
        )

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
        if step == self.manager.latest_step():
            return
        with self._clear_errors(step):
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
        step = self.manager.latest_step()
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
            reason = " ".join(str(error).split())[:200]
            raise FlaxcnnError(
                f"{self.directory / str(step)}: cannot restore this checkpoint "
                f"({reason}); delete it to continue from an older one"
            ) from error
        return restored.state, restored.progress

    def finish(self) -> None:
        """Waits until everything is on disk."""
        with self._clear_errors(None):
            self.manager.wait_until_finished()

    def close(self) -> None:
        self.manager.close()

    @contextlib.contextmanager
    def _clear_errors(self, step: int | None) -> Iterator[None]:
        """A full disk in one line; it surfaces in the save after the one that failed."""
        try:
            yield
        except Exception as error:
            if not _disk_full(error):
                raise
            kept = sorted(int(p.name) for p in self.directory.glob("[0-9]*")
                          if p.name.isdigit())  # fmt: skip
            raise FlaxcnnError(
                f"{self.directory}: no room on the disk for a checkpoint; "
                + (f"that of step {kept[-1]} is whole: " if kept else "")
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


