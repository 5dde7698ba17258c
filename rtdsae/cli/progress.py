"""The progress of a training run: a bar on a terminal, a line now and then elsewhere."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rtdsae.train.fit import Progress as Epoch
from rtdsae.train.objective import selecting

__all__ = ["TrainingProgress"]

LINE_EVERY_S = 10.0


class TrainingProgress:
    """Shows each finished epoch: loss, validation NLL, the best epoch so far, and the time that is left."""

    def __init__(self, epochs: int) -> None:
        self.console = Console(stderr=True)
        self.bar = Progress(
            TextColumn("epoch"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.fields[said]}"),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task("training", total=epochs, said="")
        self.started = self.last_line = time.monotonic()
        self.first_epoch: int | None = None

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def __call__(self, epoch: Epoch) -> None:
        """Show one finished epoch."""
        if self.first_epoch is None:
            self.first_epoch = epoch.epoch
        m = epoch.metrics
        selected = selecting(m, "valid/")
        said = (
            f"loss {m['train/loss']:.4f}  valid NLL {m['valid/nll']:.4f}  "
            f"{selected.removeprefix('valid/')} {m[selected]:.4f} (best at {epoch.best_epoch + 1})"
        )
        self.bar.update(self.task, completed=epoch.epoch + 1, said=said)
        now = time.monotonic()
        if self.bar.disable and (now - self.last_line >= LINE_EVERY_S or epoch.epoch == self.first_epoch):
            self.last_line = now
            left = (now - self.started) / (epoch.epoch + 1 - self.first_epoch) * (epoch.epochs - epoch.epoch - 1)
            self.console.print(
                f"epoch {epoch.epoch + 1}/{epoch.epochs}  {said}  at most {left:.0f} s left", soft_wrap=True
            )
