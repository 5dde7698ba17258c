"""XDF, what LabRecorder writes: the neural stream of a file in bins, and a behaviour stream onto them.

The stamps are those of the samples, moved onto the recorder's clock by the file's clock offsets; they are not smoothed,
since the daemon does not smooth them either.
"""

import io
import logging
import struct
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from xml.etree import ElementTree

import numpy as np

from rtdsae.errors import RecordingError, one_line
from rtdsae.recordings.behaviour import Series, attach, axis_labels, onto_bins
from rtdsae.recordings.binning import bin_original
from rtdsae.recordings.original import Original
from rtdsae.recordings.recording import Recording

__all__ = ["SIGNATURE", "original", "read"]

log = logging.getLogger(__name__)

SIGNATURE = b"XDF:"
BOUNDARY = bytes.fromhex("43a546dccbf5410fb30ed5467383cbe4")  # stands in the file every few seconds
NOT_NEURAL = {"latents", "rates", "markers"}  # our own outputs, and texts
SIZES = {"int8": 1, "int16": 2, "int32": 4, "int64": 8, "float32": 4, "double64": 8, "string": 0}
MAX_CHANNELS = 1 << 16
HEADER, SAMPLES = 2, 3  # tags of chunks
OF_A_STREAM = {2, 3, 4, 6}


@dataclass(frozen=True, eq=False)
class _Stream:
    """A stream of a file: `values` (n, C), or texts; `stamps` (n,); `labels` of the channels, where it has them."""

    name: str
    type: str
    source_id: str
    rate_hz: float
    n_channels: int
    labels: tuple[str, ...]
    spike_labels: tuple[str, ...]
    bin_width_s: float | None
    values: Any
    stamps: np.ndarray
    numeric: bool

    @property
    def described(self) -> str:
        rate = f"{self.rate_hz:g} Hz" if self.rate_hz else "irregular"
        kind = f"{self.n_channels} channels" if self.numeric else "texts"
        return f"name={self.name} type={self.type} ({kind}, {rate}, {len(self.stamps)} samples)"

    def matches(self, query: str) -> bool:
        """Whether it is `key=value,...` on name, type and source_id, or of this name."""
        pairs = [part.partition("=") for part in query.split(",")]
        if any(key not in ("name", "type", "source_id") or not sign for key, sign, _ in pairs):
            return query in (self.name, self.source_id)
        return all(getattr(self, key).lower() == value.lower() for key, _, value in pairs)


def read(
    path: Path, bin_width_s: float | None = None, *, stream: str | None = None, behaviour: str | None = None
) -> Recording:
    """Read a recording from XDF.

    Args:
        path: the file.
        bin_width_s: of a bin; may be left out where the stream says it, as those of `rtdsae` do.
        stream: which stream is the neural one: `name=...`, `type=...`, `source_id=...`, several with commas.
        behaviour: which is the behaviour, likewise; `none` for none; None for the one that is there.

    Raises:
        RecordingError: damaged, without such a stream, with several, or of a rate that makes no such bins.
    """
    streams = _streams(path)
    neural = _neural(streams, stream)
    source = _original(neural)
    counts, t_end, segments, width = bin_original(source, bin_width_s)
    parts: dict[str, Any] = {"counts": counts, "segments": segments}
    if series := _behaviour(streams, neural, behaviour):
        attach(parts, series.name, series.labels, onto_bins(series, t_end, width))
    return Recording(bin_width_s=width, channels=source.channels, session=path.stem, **parts)


def original(path: Path, *, stream: str | None = None) -> Original:
    """The neural stream as it is in the file.

    Raises:
        RecordingError: as `read`.
    """
    return _original(_neural(_streams(path), stream))


def _original(neural: _Stream) -> Original:
    values = neural.values
    channels = neural.labels or tuple(f"ch{i}" for i in range(neural.n_channels))
    if not neural.rate_hz:
        values = values[:, :1]
        numbers = values[np.isfinite(values) & (values >= 0)]
        highest = int(numbers.max()) if numbers.size else 0
        if highest >= MAX_CHANNELS:
            raise RecordingError(f"stream {neural.name} has a spike of channel {highest}: are these spikes?")
        channels = neural.spike_labels or tuple(f"ch{i}" for i in range(highest + 1))
    return Original(neural.name, neural.rate_hz, channels, values, neural.stamps, neural.bin_width_s)


def _neural(streams: Sequence[_Stream], query: str | None) -> _Stream:
    """The stream that was asked for, or the one of type Spikes: no other is guessed to be one."""
    wanted = query or "type=Spikes"
    found = [s for s in streams if s.numeric and len(s.stamps) and s.matches(wanted)]
    if len(found) == 1:
        return found[0]
    said = "; ".join(s.described for s in streams) or "no stream"
    n = "several streams are" if found else "no stream with samples is"
    raise RecordingError(f"{n} {wanted}: choose the neural one with --stream name=...; it has {said}")


def _behaviour(streams: Sequence[_Stream], neural: _Stream, query: str | None) -> Series | None:
    others = [s for s in streams if s.numeric and len(s.stamps) and s is not neural]
    if query == "none":
        return None
    if query is None:
        others = [s for s in others if s.type.lower() not in NOT_NEURAL | {"spikes"}]
        if len(others) > 1:
            names = ", ".join(s.name for s in others)
            log.warning(
                "%s are there besides: none is taken as behaviour; choose with rtdsae convert --behaviour NAME", names
            )
            return None
    else:
        others = [s for s in others if s.matches(query)]
        if len(others) != 1:
            said = "; ".join(s.described for s in streams)
            n = "several streams are" if others else "no stream with samples is"
            raise RecordingError(f"{n} {query}; it has {said}")
    if not others:
        return None
    taken = others[0]
    log.info("behaviour: stream %s", taken.name)
    return Series(
        taken.name, taken.labels or axis_labels(taken.name, taken.n_channels), np.asarray(taken.values), taken.stamps
    )


def _streams(path: Path) -> list[_Stream]:
    import pyxdf

    logging.getLogger("pyxdf").setLevel(logging.ERROR)  # what it warns of is always there without smoothing
    try:
        with path.open("rb") as file, warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            whole = _check(file, path.stat().st_size)
            source = path if whole is None else io.BytesIO(whole)
            found, _ = pyxdf.load_xdf(source, dejitter_timestamps=False)
            return [_stream(entry) for entry in found]
    except RecordingError:
        raise
    except Exception as error:  # pyxdf raises whatever a damaged file leads it to
        raise RecordingError(f"not a readable XDF file: {one_line(error) or type(error).__name__}") from None


def _stream(entry: dict[str, Any]) -> _Stream:
    info = entry["info"]
    numeric = info["channel_format"][0] != "string"
    n = int(info["channel_count"][0])
    values = entry["time_series"]
    if numeric:
        values = np.asarray(values).reshape(-1, n)
    given = tuple(str(_dig(channel, "label") or "") for channel in _dig(info, "desc", "channels", all_of="channel"))
    spiking = tuple(str(_dig(c, "label") or "") for c in _dig(info, "desc", "spike_channels", all_of="channel"))
    said = _dig(info, "desc", "bin_width_s")
    return _Stream(
        name=str(_dig(info, "name") or ""),
        type=str(_dig(info, "type") or ""),
        source_id=str(_dig(info, "source_id") or ""),
        rate_hz=float(info["nominal_srate"][0]),
        n_channels=n,
        labels=given if len(set(given)) == n and all(given) else (),
        spike_labels=spiking if len(set(spiking)) == len(spiking) else (),
        bin_width_s=float(said) if said else None,
        values=values,
        stamps=np.asarray(entry["time_stamps"], np.float64),
        numeric=numeric,
    )


def _dig(node: Any, *keys: str, all_of: str | None = None) -> Any:
    """What is at a path in a stream's description, which wraps everything in lists; nothing where it is not there."""
    for key in keys:
        found = node.get(key) if isinstance(node, dict) else None
        node = found[0] if isinstance(found, list) and found else None
    if all_of is None:
        return node
    return node.get(all_of) or [] if isinstance(node, dict) else []


def _check(file: BinaryIO, size: int) -> bytes | None:
    """Walks over the chunks, so that no length that is wrong is believed; what is whole where the end is cut off.

    Raises:
        RecordingError: a chunk is impossible, or reaches beyond the file's end and something comes after it.
    """
    rows: dict[int, tuple[int, int]] = {}  # of each stream: values a sample, bytes a value (0: texts)
    at = file.seek(len(SIGNATURE))
    while at < size:
        length = _length(file)
        start = file.tell()
        if length is None or length < 2 or start + length > size:
            return _whole(file, at, size)
        (tag,) = struct.unpack("<H", file.read(2))
        if tag in OF_A_STREAM:
            if length < 6:
                raise RecordingError(f"damaged at byte {at}: a chunk of {length} bytes names no stream")
            (stream,) = struct.unpack("<I", file.read(4))
            if tag == HEADER:
                rows[stream] = _row(file.read(length - 6), at)
            elif stream not in rows:
                raise RecordingError(f"damaged at byte {at}: stream {stream} was not announced")
            elif tag == SAMPLES and not _adds_up(file.read(length - 6), *rows[stream]):
                raise RecordingError(f"damaged at byte {at}: its samples are not as many as it says")
        at = file.seek(start + length)
    return None


def _length(file: BinaryIO) -> int | None:
    """A number of 1, 4 or 8 bytes, whose first byte says which; None where it is none."""
    n = file.read(1)
    digits = file.read(n[0]) if n and n[0] in (1, 4, 8) else b""
    return int.from_bytes(digits, "little") if n and len(digits) == n[0] else None


def _adds_up(content: bytes, n_channels: int, n_bytes: int) -> bool:
    """Whether a chunk's samples, each with or without its stamp, fill it exactly."""
    file = io.BytesIO(content)
    n, at = _length(file), file.tell()
    row = n_channels * n_bytes
    if n is None or n * (1 + max(row, n_channels)) > len(content):
        return False
    for with_stamp, size in ((8, row + 9), (0, row + 1)):  # what nearly every chunk is: all samples alike
        if n_bytes and at + n * size == len(content) and content[at::size] == bytes([with_stamp]) * n:
            return True
    for _ in range(n):
        stamp = content[at] if at < len(content) else None
        if stamp not in (0, 8):
            return False
        at += 1 + stamp + row
        for _ in range(0 if n_bytes else n_channels):
            file.seek(at)
            length = _length(file)
            if length is None:
                return False
            at = file.tell() + length
    return at == len(content)


def _row(header: bytes, at: int) -> tuple[int, int]:
    """How many values a stream's sample has, and how many bytes each."""
    try:
        xml = ElementTree.fromstring(header.decode("utf-8", "replace"))
        n, size = int(xml.findtext("channel_count", "")), SIZES[xml.findtext("channel_format", "")]
        rate = float(xml.findtext("nominal_srate", ""))
    except (ElementTree.ParseError, ValueError, KeyError):
        raise RecordingError(f"damaged at byte {at}: a stream's header cannot be read") from None
    if not (0 <= n <= MAX_CHANNELS and 0 <= rate < 1e9):
        raise RecordingError(f"damaged at byte {at}: a stream of {n} channels at {rate:g} Hz")
    return n, size


def _whole(file: BinaryIO, at: int, size: int) -> bytes:
    """The file without its last chunk, which was not written to its end."""
    file.seek(at)
    if BOUNDARY in file.read():
        raise RecordingError(f"damaged at byte {at}: a chunk's length is wrong")
    log.warning("cut off: the last %d bytes, one chunk, are left out", size - at)
    file.seek(0)
    return file.read(at)
