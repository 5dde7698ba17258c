"""The verb search, and its table."""

import math
import shlex
import sys
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Self

import msgspec
from tyro.conf import Positional

from rtdsae.cli.arguments import unset
from rtdsae.errors import ConfigError, ExportError

if TYPE_CHECKING:
    from rich.console import Group

    from rtdsae.train.search import Generation

__all__ = ["Search"]


class Search(msgspec.Struct, frozen=True, kw_only=True):
    """Search for settings by population-based training, at random or by TPE; the same command goes on after Ctrl-C."""

    config: Positional[Path]
    """YAML file of the search, such as configs/search_lfads.yaml."""
    data: Annotated[tuple[str, ...], unset("RECORDING", "the base's data.path")] = ()
    """Recording to train on; repeat it for several sessions."""
    out: Annotated[Path | None, unset("FOLDER", "out/searches/<config>-<recording>")] = None
    """Folder to make, or to go on with."""
    export: Annotated[Path | None, unset("FOLDER")] = None
    """Folder of a bundle to write of the best run; its name becomes the bundle's."""
    address: Annotated[str | None, unset("HOST:PORT", "this computer")] = None
    """Ray cluster to run on, such as 10.0.0.1:6379 or auto; all of it has to see --out."""

    def run(self) -> None:
        """Searches, and says where the best run is."""
        from rtdsae.recordings import load
        from rtdsae.train.export import check_exportable, export
        from rtdsae.train.search import search
        from rtdsae.train.space import load_search

        wanted = load_search(self.config, self.data)
        data = wanted.base.data
        if not data.paths:
            raise ConfigError(f"{self.config} names no recording: give --data PATH, or set data.path in its base")
        if self.export is not None:
            if self.export.exists():
                raise ExportError(f"{self.export} exists: choose another --export")
            check_exportable(wanted.base, str(self.config), self.export)  # a search takes hours

        from rtdsae.train.sessions import prepare

        recordings = [prepare(load(path, data.bin_width_s), wanted.base) for path in data.paths]
        out = self.out or Path("out/searches") / f"{self.config.stem}-{Path(data.paths[0]).stem}"
        s = wanted.settings
        print(f"{s.method}: {s.trials} trials of at most {wanted.epochs(s.generations - 1)} epochs; search: {out}")
        with SearchTable(tuple(wanted.axes)) as table:
            command = f"rtdsae {shlex.join(sys.argv[1:])}"
            found = search(wanted, recordings, out, table, address=self.address, command=command)
        for line in found.failed:
            print(line)
        on = "" if found.state == "finished" else "; the same command goes on"
        print(f"{found.state}: {found.finished} of {s.trials} trials came to their end{on}")
        print(f"best: trial {found.trial}, score {found.best.info['best_score']:.4f} nats per bin and neuron")
        print(f"run: {out / 'best'}")
        if self.export is None:
            print(f"rtdsae export {out / 'best'} --out models/NAME makes a bundle of it")
            return
        made = export(found.best, self.export)
        print(f"bundle: {self.export} ({made.hash[:16]})")


class SearchTable:
    """Shows where each trial stands: a live table on a terminal, a line a generation elsewhere.

    Args:
        keys: what is searched.
    """

    def __init__(self, keys: tuple[str, ...]) -> None:
        from rich.console import Console
        from rich.live import Live

        self.keys = keys
        self.console = Console(stderr=True)
        self.live = Live(console=self.console, auto_refresh=False)
        self.rows: dict[str, Generation] = {}

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.live.stop()

    def __call__(self, generation: "Generation") -> None:
        """Show a generation of a trial."""
        self.rows[generation.trial] = generation
        if self.console.is_terminal:
            self.live.update(self.table(), refresh=True)
            return
        cells = cells_of(generation)
        values = " ".join(f"{key}={formatted(value)}" for key, value in generation.values.items())
        self.console.print(
            f"trial {cells[0]}  generation {cells[1]}  epoch {cells[2]}  score {cells[3]}  best {cells[4]}  {values}"
            f"{f'  {generation.failure}' if generation.failure else ''}",
            soft_wrap=True,
            highlight=False,
            markup=False,
        )

    def table(self) -> "Group":
        """All trials, the best one first; below them, why those that failed did."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        rows = sorted(self.rows.values(), key=lambda row: row.score)
        table = Table(box=None, pad_edge=False)
        for title in ("trial", "generation", "epoch", "score", "best", *self.keys):
            table.add_column(title, justify="right", overflow="fold")
        for row in rows:
            table.add_row(*cells_of(row), *(formatted(row.values[key]) for key in self.keys))
        return Group(table, *(Text(f"trial {row.trial}: {row.failure}") for row in rows if row.failure))


def cells_of(row: "Generation") -> tuple[str, ...]:
    """Trial, generation, epoch, score and best score."""
    return (row.trial, f"{row.generation}/{row.generations}", str(row.epoch), formatted(row.score), formatted(row.best))


def formatted(value: object) -> str:
    """A value in a cell."""
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else "failed"
    return str(value)
