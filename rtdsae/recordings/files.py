"""Load and save: which reader a file needs is read from its content; only what Neo reads is told by its name."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from rtdsae.errors import RecordingError
from rtdsae.recordings import hdf5, matfile, matlab, neo, npz, nwb, recorded, xdf
from rtdsae.recordings.original import Original
from rtdsae.recordings.rebin import rebin
from rtdsae.recordings.recording import Recording
from rtdsae.recordings.segments import checked_width

__all__ = ["check_name", "load", "load_original", "save"]

WRITTEN = (".h5", ".hdf5", ".npz")


class _Format(NamedTuple):
    """A kind of file: `choices` are the arguments of `load` that its reader takes."""

    name: str
    read: Callable[..., Recording]
    choices: tuple[str, ...] = ()
    original: Callable[..., Original] | None = None


HDF5 = _Format("HDF5", hdf5.read)
NPZ = _Format("npz", npz.read)
RECORDED = _Format("what rtdsae record wrote", recorded.read)
NWB = _Format("NWB", nwb.read, ("behaviour", "condition"), nwb.original)
XDF = _Format("XDF", xdf.read, ("stream", "behaviour"), xdf.original)
MATLAB = _Format("MATLAB", matlab.read, ("behaviour", "condition"))
NEO = _Format("a rig's own format", neo.read, (), neo.original)


def load(
    path: str | Path,
    bin_width_s: float | None = None,
    *,
    behaviour: str | None = None,
    condition: str | None = None,
    stream: str | None = None,
    session: str | None = None,
) -> Recording:
    """Read a recording, whatever the file; docs/recordings.md says what is taken from each.

    Read are rtdsae's own HDF5 and npz, lfads-torch's HDF5, NWB, XDF, MATLAB, what `rtdsae record` wrote, and formats of
    rigs that Neo reads.

    Args:
        path: the file; a folder for Open Ephys and Neuralynx.
        bin_width_s: width of a bin in seconds. Spikes are binned so, finer bins are added up, and of a file that does
            not say how wide its bins are, it is taken to be this.
        behaviour: NWB: a series, by name or path; XDF: a stream; MATLAB: fields, with commas. `none` takes none, and
            None what is there, where that is clear.
        condition: NWB: a column of the trials, or several with commas; MATLAB: a field. `none` takes none, and None
            one whose name says so.
        stream: XDF: which stream is the neural one, like `name=...`.
        session: a name for the session; None keeps the file's.

    Raises:
        RecordingError: no such file, truncated, of no known layout, or impossible content; the line names the file.
    """
    path = Path(path)
    try:
        if bin_width_s is not None:
            checked_width(bin_width_s)
        recording = _read(path, bin_width_s, {"behaviour": behaviour, "condition": condition, "stream": stream})
        if bin_width_s is not None and recording.bin_width_s != bin_width_s:
            recording = rebin(recording, bin_width_s)
    except RecordingError as error:
        raise _named(error, path) from None
    return recording if session is None else dataclasses.replace(recording, session=session)


def load_original(path: str | Path, *, stream: str | None = None) -> Original:
    """A file's neural stream before any bin: samples or spikes, with their stamps.

    Args:
        path: as `load` takes it.
        stream: likewise.

    Raises:
        RecordingError: as `load`, or the file has bins only.
    """
    path = Path(path)
    try:
        found = _format(path)
        if found.original is None:
            raise RecordingError(f"{found.name} has bins, and no stamps that the samples came with")
        return found.original(path, **_chosen(found, {"stream": stream}))
    except RecordingError as error:
        raise _named(error, path) from None


def save(recording: Recording, path: str | Path) -> None:
    """Write a recording in rtdsae's own HDF5 form, or as npz where the path ends so; whole or not at all.

    Raises:
        RecordingError: when the file cannot be written, or its name is that of another format.
    """
    path = Path(path)
    check_name(path)
    if not path.parent.is_dir():
        raise RecordingError(f"{path}: cannot be written: there is no folder {path.parent}")
    write = npz.write if path.suffix.lower() == ".npz" else hdf5.write
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(recording, beside)
        beside.replace(path)
    except OSError as error:
        raise RecordingError(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        beside.unlink(missing_ok=True)


def check_name(path: Path) -> None:
    """Refuse to write a file under the name of another format.

    Raises:
        RecordingError: its name ends so.
    """
    if path.suffix.lower() not in WRITTEN:
        raise RecordingError(f"{path}: only HDF5 and npz are written: name it {', '.join(WRITTEN)}")


def _read(path: Path, bin_width_s: float | None, choices: dict[str, str | None]) -> Recording:
    found = _format(path)
    return found.read(path, bin_width_s, **_chosen(found, choices))


def _chosen(found: _Format, choices: dict[str, str | None]) -> dict[str, Any]:
    """The choices that were made, as far as the format has them."""
    made = {name: choice for name, choice in choices.items() if choice is not None}
    if void := [name for name in made if name not in found.choices]:
        raise RecordingError(f"--{void[0]} means nothing for {found.name}: leave it out")
    return made


def _format(path: Path) -> _Format:
    if path.is_dir():
        if neo.recognises(path):
            return NEO
        raise RecordingError(f"is a folder without {', '.join(neo.FOLDERS)}: name a file")
    if not path.is_file():
        raise RecordingError("no such file")
    try:
        with path.open("rb") as file:
            start = file.read(8)
    except OSError as error:
        raise RecordingError(f"cannot be read: {error.strerror}") from None
    if start == hdf5.SIGNATURE:
        return _hdf5(path)
    for signature, found in ((npz.SIGNATURE, NPZ), (xdf.SIGNATURE, XDF), (matfile.SIGNATURE, MATLAB)):
        if start.startswith(signature):
            return found
    if neo.recognises(path):
        return NEO
    by_name = ", ".join(neo.READERS)
    raise RecordingError(f"neither HDF5 nor npz, NWB, XDF, MATLAB or {by_name}: a recording is one of these")


def _hdf5(path: Path) -> _Format:
    """Which of the kinds of file that are HDF5."""
    with hdf5.opened(path) as file:
        return NWB if nwb.recognises(file) else RECORDED if recorded.recognises(file) else HDF5


def _named(error: RecordingError, path: Path) -> RecordingError:
    """The error, with the file in its line."""
    return error if str(path) in str(error) else RecordingError(f"{path}: {error}")
