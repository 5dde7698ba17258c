"""The verb convert: a recording of another format as rtdsae's own."""

import contextlib
import dataclasses
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec
from tyro.conf import Positional

from rtdsae.cli.arguments import unset
from rtdsae.errors import ConfigError

__all__ = ["Convert"]


class Convert(msgspec.Struct, frozen=True, kw_only=True):
    """A recording of another format as rtdsae's own, with a summary, and warnings before you train on it.

    Read are NWB, XDF, MATLAB, lfads-torch, what rtdsae record wrote, Blackrock, Plexon, Open Ephys: docs/recordings.md.
    """

    file: Positional[Path]
    """The recording; a folder for Open Ephys and Neuralynx."""
    out: Annotated[Positional[Path | None], unset("[OUT]", "only the summary")] = None
    """HDF5 to write, or npz where the name ends so."""
    bin_width: Annotated[float | None, unset("SECONDS", "the file's")] = None
    """Of a bin: spikes are binned so, finer bins are added up."""
    behaviour: Annotated[str | None, unset("NAME", "where there is one")] = None
    """NWB series, XDF stream or MATLAB fields; none for none."""
    condition: Annotated[str | None, unset("NAME", "where one is named so")] = None
    """NWB's column of the trials, or MATLAB's field; none for none."""
    stream: Annotated[str | None, unset("QUERY", "the one of type Spikes")] = None
    """XDF's neural stream: name=..., type=..., source_id=..."""
    session: Annotated[str | None, unset("NAME", "the file's")] = None
    """A name for the session."""
    overwrite: bool = False
    """Replace OUT where it is there."""
    json: bool = False
    """Summary and warnings as one JSON object on the last line."""

    def run(self) -> None:
        """Reads, writes, and says what there is.

        Raises:
            ConfigError: OUT is there already.
            RecordingError: the file cannot be read as it is asked for, or OUT not be written, or not by its name.
        """
        from rtdsae.recordings import load, save
        from rtdsae.recordings.files import check_name
        from rtdsae.recordings.survey import survey

        if self.out is not None:
            check_name(self.out)
            if self.out.exists() and not self.overwrite:
                raise ConfigError(f"{self.out} is there already: name another file, or say --overwrite")

        with _said() as notes:
            recording = load(
                self.file,
                self.bin_width,
                behaviour=self.behaviour,
                condition=self.condition,
                stream=self.stream,
                session=self.session,
            )
        if self.out is not None:
            save(recording, self.out)
        found = survey(recording)
        written = {"file": str(self.file), "out": str(self.out) if self.out else None, "hash": recording.hash}
        if self.json:
            print(json.dumps({**written, "notes": notes, **dataclasses.asdict(found)}))
            return
        print("\n".join([*(f"note: {note}" for note in notes), *found.lines()]))
        print("\n".join(f"warning: {line}" for line in found.warnings) or "no warnings")
        if self.out is not None:
            print(f"wrote {self.out}, data hash {recording.hash[:12]}")


@contextlib.contextmanager
def _said() -> Iterator[list[str]]:
    """What the readers say meanwhile: what they chose, and what they left out."""
    notes: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            notes.append(record.getMessage())

    log, keep = logging.getLogger("rtdsae.recordings"), Keep()
    before, log.propagate = (log.level, log.propagate), False
    log.setLevel(logging.INFO)
    log.addHandler(keep)
    try:
        yield notes
    finally:
        log.removeHandler(keep)
        log.setLevel(before[0])
        log.propagate = before[1]
