"""Spikes of the formats that rigs write, read by Neo: Blackrock, Plexon, NeuroExplorer, Open Ephys, Neuralynx.

Every unit, unsorted ones included, is a channel; units that the rig marked as noise are left out. A segment of Neo's is
one here, and its bins begin with its first spike. In a .nev Neo begins one where the clock was set back; of a pause
such a file says nothing: it becomes bins without spikes, of which `checks` warns.
"""

import logging
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rtdsae.errors import RecordingError, one_line
from rtdsae.recordings.binning import count_spikes, needed_width
from rtdsae.recordings.original import Original
from rtdsae.recordings.recording import Recording

__all__ = ["original", "read", "recognises"]

log = logging.getLogger(__name__)

# What is read of a file is told by its name's end; Neo's readers of other formats unpickle, or load other programs.
READERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".nev": ("BlackrockRawIO", {"nsx_to_load": []}),  # spikes alone: not the raw signals beside them
    ".plx": ("PlexonRawIO", {}),
    ".nex": ("NeuroExplorerRawIO", {}),
}
FOLDERS: dict[str, tuple[str, dict[str, Any]]] = {  # of which a folder is a recording
    ".spikes": ("OpenEphysRawIO", {}),
    ".nse": ("NeuralynxRawIO", {}),
    ".ntt": ("NeuralynxRawIO", {}),
}
NOISE = "#255"  # Blackrock's unit of what is not a spike


def recognises(path: Path) -> bool:
    """Whether a file's name, or what a folder holds, is of one of these formats."""
    return _reader(path) is not None


def read(path: Path, bin_width_s: float | None = None) -> Recording:
    """Read a recording with Neo.

    Args:
        path: the file, or the folder of an Open Ephys or Neuralynx recording.
        bin_width_s: of a bin; these formats have spike times, so somebody must say it.

    Raises:
        RecordingError: damaged, or without spikes.
    """
    width = needed_width(bin_width_s, "the file has spike times and no bins")
    labels, segments = _spikes(path)
    counts = [_binned(times, width) for times in segments]
    whole = [c for c in counts if len(c)]
    if not whole:
        raise RecordingError(f"no bin of {width:g} s between the first spike and the last")
    stops = np.cumsum([len(c) for c in whole])
    spans = np.stack([np.r_[0, stops[:-1]], stops], axis=1)
    return Recording(np.concatenate(whole), width, channels=labels, segments=spans, session=path.stem)


def original(path: Path) -> Original:
    """The spikes of all units as one stream: of one segment after the other, since the clock may have been set back.

    Raises:
        RecordingError: damaged, or without spikes.
    """
    labels, segments = _spikes(path)
    parts = [Original.of_spikes(path.stem, labels, times) for times in segments]
    samples, stamps = (np.concatenate([getattr(part, name) for part in parts]) for name in ("samples", "stamps"))
    return replace(parts[0], samples=samples, stamps=stamps)


def _binned(times: list[np.ndarray], width: float) -> np.ndarray:
    first, last = (float(f([f(t) for t in times if len(t)])) for f in (np.min, np.max))
    return count_spikes(times, first, width, int((last - first) / width + 1e-6))


def _reader(path: Path) -> tuple[str, dict[str, Any]] | None:
    if path.is_dir():
        return next((FOLDERS[f.suffix] for f in sorted(path.iterdir()) if f.suffix in FOLDERS), None)
    return READERS.get(path.suffix.lower())


def _spikes(path: Path) -> tuple[tuple[str, ...], list[list[np.ndarray]]]:
    """Labels, and for each segment with spikes the times of each unit, in seconds."""
    import neo.rawio

    reader = _reader(path)
    assert reader is not None  # else nobody would have called
    name, options = reader
    key = "dirname" if path.is_dir() else "filename"
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            raw = getattr(neo.rawio, name)(**{key: str(path)}, **options)
            raw.parse_header()
            names = [str(channel) for channel in raw.header["spike_channels"]["name"]]
            kept = [i for i, channel in enumerate(names) if not channel.endswith(NOISE)]
            found = [[_times(raw, segment, i) for i in kept] for segment in range(raw.segment_count(0))]
    except Exception as error:  # Neo raises whatever a damaged file leads it to
        raise RecordingError(f"not readable as {name}: {one_line(error) or type(error).__name__}") from None
    if dropped := len(names) - len(kept):
        log.warning("%d units that the rig marked as noise are left out", dropped)
    segments = [times for times in found if any(len(t) for t in times)]
    if not segments:
        raise RecordingError("it holds no spikes")
    return tuple(_distinct(names[i] for i in kept)), segments


def _times(raw: Any, segment: int, unit: int) -> np.ndarray:
    stamps = raw.get_spike_timestamps(block_index=0, seg_index=segment, spike_channel_index=unit)
    return np.sort(np.asarray(raw.rescale_spike_timestamp(stamps, dtype="float64"), np.float64))


def _distinct(names: Iterator[str]) -> Iterator[str]:
    """Names, a later one of the same with a number behind it."""
    seen: dict[str, int] = {}
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        yield name if seen[name] == 1 else f"{name}.{seen[name]}"
