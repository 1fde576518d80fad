"""What a run leaves behind: console lines, log.txt, metrics files, TensorBoard."""

import contextlib
import csv
import io
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from flaxcnn.train.workdir import replace_file

logger = logging.getLogger("flaxcnn")

COLUMNS = (
    "step", "epoch", "split", "loss", "accuracy", "images_per_second", "seconds",
    "data_wait",  # share of the time in which the loop waited for batches
)  # fmt: skip


class Log:
    """The log of one process of a run; only the first writes.

    Args:
      workdir: where the files go.
      step: where the run continues; rows of later steps, from a run that was killed
        after its last checkpoint, are dropped.
      total: steps of the whole run.
      writes: is this the process that writes?
    """

    def __init__(self, workdir: Path, step: int, total: int, writes: bool):
        self.workdir, self.writes = workdir, writes
        self.started = time.perf_counter()
        logger.setLevel(logging.INFO if writes else logging.ERROR)
        logger.propagate = False
        self.console = Console()
        self.handlers = self._handlers() if writes else []
        for handler in self.handlers:
            logger.addHandler(handler)
        self.rows = [row for row in self._old_rows() if row["step"] <= step]
        self.progress: Progress | None = None
        if writes:
            self._open_files(step)
        if writes and self.console.is_terminal:
            self.progress = Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                TextColumn("steps"), TextColumn("{task.fields[speed]}"),
                TimeRemainingColumn(), console=self.console, transient=True,
            )  # fmt: skip
            self.task = self.progress.add_task(
                "training", total=total, completed=step, speed=""
            )
            self.progress.start()

    def row(self, **values: Any) -> dict[str, Any]:
        """Appends one row to metrics.jsonl, metrics.csv and TensorBoard."""
        row = {column: values[column] for column in COLUMNS}
        self.rows.append(row)
        if not self.writes:
            return row
        self._jsonl.write(json.dumps(row) + "\n")
        self._csv.writerow(row.values())
        for file in (self._jsonl, self._csv_file):
            file.flush()
        for key in ("loss", "accuracy", "images_per_second"):
            self._events.add_scalar(f"{row['split']}/{key}", row[key], row["step"])
        return row

    def advance(self, step: int, images_per_second: float) -> None:
        """Moves the progress bar, on a terminal."""
        if self.progress:
            speed = f"{images_per_second:,.0f} images/s" if images_per_second else ""
            self.progress.update(self.task, completed=step, speed=speed)

    def close(self) -> None:
        if self.progress:
            self.progress.stop()
        files = [self._events, self._jsonl, self._csv_file] if self.writes else []
        for handler in self.handlers:
            logger.removeHandler(handler)
        for file in [*files, *self.handlers]:
            with contextlib.suppress(OSError):  # a full disk has been told before
                file.close()

    def _handlers(self) -> list[logging.Handler]:
        plain = logging.Formatter("%(message)s")
        stream: logging.Handler = logging.StreamHandler(sys.stdout)
        if self.console.is_terminal:
            stream = RichHandler(
                console=self.console, show_time=False, show_level=False, show_path=False
            )
        stream.setFormatter(plain)
        file = logging.FileHandler(self.workdir / "log.txt")
        file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        file.handleError = lambda record: None  # type: ignore[method-assign]
        return [stream, file]

    def _old_rows(self) -> list[dict[str, Any]]:
        path = self.workdir / "metrics.jsonl"
        if not path.exists():
            return []
        rows = []
        for line in path.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:  # the run was killed while it wrote this
                break
        return rows

    def _open_files(self, step: int) -> None:
        from tensorboardX import SummaryWriter

        jsonl, table = self.workdir / "metrics.jsonl", self.workdir / "metrics.csv"
        replace_file(jsonl, "".join(json.dumps(row) + "\n" for row in self.rows))
        text = io.StringIO(newline="")
        csv.writer(text).writerows([COLUMNS, *(row.values() for row in self.rows)])
        replace_file(table, text.getvalue())
        self._jsonl, self._csv_file = jsonl.open("a"), table.open("a", newline="")
        self._csv = csv.writer(self._csv_file)
        self._events = SummaryWriter(str(self.workdir), purge_step=step + 1)
