"""Stores what a daemon publishes in an HDF5 file, without holes as long as the daemon still has what was missed.

    /part000                 bins of one run of the daemon under one schema, in order; the next has the next number
        seq bin flags        (T,) whole numbers, as published; the flag backfill (16) marks what came from history
        t_bin t_in t_out     (T,) seconds on the daemon's LSL clock
        arrays/factors ...   (T, ...) float32, with attributes unit and labels
        attributes           run, schema_id, bundle, bundle_hash, bin_width_s, schema (JSON)
    /status                  (n,) JSON texts, one a second, as published
    attributes               endpoint; missing: how many bins; holes (n, 3): run, first and last seq that are missing

What was missed is asked for at once and put where it belongs; the bins behind wait in the socket meanwhile. The file is
written once a second, in one go, so that it can be read whenever the recording is cut off.
"""

import errno
import json
import logging
import os
import shutil
import time
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from rtdsae.client import Control, Subscriber
from rtdsae.errors import ControlError, EndpointError, RecordingError, one_line
from rtdsae.wire import Flags, Latents, Status

__all__ = ["Recorder"]

log = logging.getLogger(__name__)

HEADER = {"seq": "u8", "bin": "u8", "flags": "u2", "t_bin": "f8", "t_in": "f8", "t_out": "f8"}
FLUSH_S = 1.0
TICK_S = 0.2  # between two looks at whether to end
MAX_PENDING = 1000  # bins in memory
TRIES = 3  # to reach the daemon for what was missed
CHUNK_BYTES = 1 << 17
MOST_LABELS = 4000  # that an attribute of HDF5 holds; the schema, beside them, has all
SPARE_BYTES = 16 << 20  # that must be free besides: for HDF5's own, and for other programs that write meanwhile
DRAIN_S = 1.0  # for what has arrived and is not yet recorded, at the end
MAX_HOLES = 1000  # named in the file; more are counted
MOST_MISSING = 2**64 - 1  # that an attribute of HDF5 holds


class Recorder:
    """Records until it is told to stop.

    Args:
        out: the file, which must not be there yet.
        subscriber: what to record; its `timeout_s` is how long to wait for the first bin.
        control: where to ask for what was missed.

    Attributes:
        should_exit: set it to end the recording.
        bins: recorded so far.
        filled: those of them that came from the daemon's history.
        missing: bins that never came.

    Raises:
        RecordingError: the file is there already, or cannot be made.
    """

    def __init__(self, out: Path, subscriber: Subscriber, control: Control) -> None:
        self.should_exit = False
        self.bins = self.filled = self.missing = 0
        self._subscriber, self._control = subscriber, control
        self._file = _File(out, subscriber.endpoint)
        self._run: int | None = None
        self._next_seq = 0
        self._why_missing = "the daemon had them no longer: serve with a longer model.history_s"

    def run(self, seconds: float | None = None, count: int | None = None) -> None:
        """Records for so many seconds from the first bin on, or about so many bins; else until `should_exit`.

        Raises:
            EndpointError: nothing was published for `timeout_s`.
            RecordingError: bins are missing in the end, or the file cannot be written any further.
        """
        try:
            self._loop(seconds, count)
        finally:
            self._file.close(keep=self.bins > 0)
        if self.missing:
            raise RecordingError(
                f"{self._file.path}: {self.missing} of {self.bins + self.missing} bins are missing (its attribute "
                f"'holes' says which): {self._why_missing}"
            )

    def _loop(self, seconds: float | None, count: int | None) -> None:
        began, status = time.monotonic(), self._subscriber.status
        next_flush = began + FLUSH_S
        while not self.should_exit and (count is None or self.bins < count):
            if message := self._subscriber.receive(TICK_S):
                if self._run is None:
                    began = time.monotonic()
                self._take(message)
            if self._subscriber.status is not status:
                status = self._subscriber.status
                self._file.add_status(status or Status({}))
            now = time.monotonic()
            if now >= next_flush or self._file.n_pending >= MAX_PENDING:
                next_flush = now + FLUSH_S
                self._file.flush()
            if self._run is None:
                patience_s = self._subscriber.timeout_s
                if patience_s is not None and now - began > patience_s:
                    raise EndpointError(self._subscriber.why_silent(patience_s))
            elif seconds is not None and now - began > seconds:
                break
        self._drain()
        self._file.flush()

    def _drain(self) -> None:
        """What had arrived when it was told to stop."""
        deadline = time.monotonic() + DRAIN_S
        while self.should_exit and time.monotonic() < deadline and (message := self._subscriber.receive(0)):
            self._take(message)

    def _take(self, message: Latents) -> None:
        if message.flags & Flags.BACKFILL or message.schema is None:
            return
        if message.run != self._run:
            self._next_seq = message.seq if self._run is None else 0  # one that began while we listened began at 0
            self._run = message.run
        if message.seq > self._next_seq:
            self._fill(message.seq - 1)
        self._add(message)

    def _add(self, message: Latents) -> None:
        """The next bin in order, whether it came by itself or was asked for."""
        if message.seq > self._next_seq:
            self._miss(message.seq - 1)
        self._next_seq = message.seq + 1
        self.bins += 1
        self._file.add(message)
        if self._file.n_pending >= MAX_PENDING:
            self._file.flush()

    def _fill(self, last: int) -> None:
        """Asks for what is missing up to `seq` last, and adds what the daemon still has of it."""
        for _ in range(TRIES):
            try:
                for found in self._control.iter_history(self._next_seq, last):
                    if found.run != self._run or not self._next_seq <= found.seq <= last:
                        continue
                    if schema := self._subscriber.schemas.get(found.schema_id):
                        self._add(found.bind(schema))
                        self.filled += 1
                    else:
                        self._why_missing = "they are of a model that was swapped in and out unheard"
            except (EndpointError, ControlError) as error:
                self._why_missing = str(error)
                if not self.should_exit:
                    continue
            break
        if self._next_seq <= last:
            self._miss(last)

    def _miss(self, last: int) -> None:
        self.missing += last + 1 - self._next_seq
        self._file.add_hole(self._run or 0, self._next_seq, last, self.missing)
        log.warning("bins %d to %d are missing", self._next_seq, last)
        self._next_seq = last + 1


class _File:
    """The HDF5 file. What is added is written by `flush`."""

    def __init__(self, path: Path, endpoint: str) -> None:
        self.path = path
        self._bins: list[Latents] = []
        self._statuses: list[str] = []
        self._holes: list[tuple[int, int, int]] = []
        self._n_missing = self._n_parts = 0
        self._failed = False
        self._part: h5py.Group | None = None
        self._part_of: tuple[int, int] | None = None
        try:
            # The oldest format: the newer ones mark a file that is being written, which cannot be opened if cut off.
            self._file = h5py.File(path, "x", libver=("earliest", "v108"))
        except FileExistsError:
            raise RecordingError(f"{path}: is there already: name another file") from None
        except OSError as error:
            why = os.strerror(error.errno) if error.errno else one_line(error)
            raise RecordingError(f"{path}: cannot be made: {why}") from None
        self._file.attrs["endpoint"] = endpoint
        self._file.attrs["missing"] = 0
        self._file.create_dataset("status", (0,), h5py.string_dtype(), maxshape=(None,), chunks=(64,))
        self._file.flush()

    @property
    def n_pending(self) -> int:
        return len(self._bins)

    def add(self, message: Latents) -> None:
        if (message.run, message.schema_id) != self._part_of:
            self.flush()
            self._begin_part(message)
        self._bins.append(message)

    def add_status(self, status: Status) -> None:
        self._statuses.append(json.dumps(dict(status)))

    def add_hole(self, run: int, first: int, last: int, n_missing: int) -> None:
        self._holes = [*self._holes, (run, first, last)][:MAX_HOLES]
        self._n_missing = n_missing

    def flush(self) -> None:
        """Writes what was added.

        Raises:
            RecordingError: the disk is full, or it cannot be written for another reason.
        """
        try:
            self._check_space()
        except OSError as error:
            self._bins, self._statuses = [], []
            kept = "what was written until then can be read"
            raise RecordingError(f"{self.path}: cannot be written any further: {error.strerror}; {kept}") from None
        try:
            self._write()
            self._file.flush()
        except (OSError, RuntimeError) as error:
            self._failed = True
            raise RecordingError(f"{self.path}: cannot be written any further: {one_line(error)}") from None

    def close(self, *, keep: bool) -> None:
        """Ends the file; without bins there is none."""
        if self._failed:  # HDF5 would try again what did not work, and crash
            return
        self._file.close()
        if not keep:
            self.path.unlink(missing_ok=True)

    def _check_space(self) -> None:
        """HDF5 does not survive a write that fails, and neither does its file: we ask before it does."""
        needed = SPARE_BYTES + sum(b.payload.nbytes + 64 for b in self._bins) + sum(map(len, self._statuses))
        if not hasattr(os, "posix_fallocate"):
            if shutil.disk_usage(self.path.parent).free < needed:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return
        with self.path.open("r+b") as file:  # quotas and limits count too
            size = os.fstat(file.fileno()).st_size
            try:
                os.posix_fallocate(file.fileno(), size, needed)
            finally:
                os.ftruncate(file.fileno(), size)

    def _begin_part(self, message: Latents) -> None:
        schema = message.schema
        assert schema is not None
        self._part_of = (message.run, message.schema_id)
        self._part = self._file.create_group(f"part{self._n_parts:03d}")
        self._n_parts += 1
        self._part.attrs.update(
            run=message.run,
            schema_id=message.schema_id,
            bundle=schema.bundle,
            bundle_hash=schema.bundle_hash,
            bin_width_s=schema.bin_width_s,
            schema=schema.json.decode(),
        )
        for name, dtype in HEADER.items():
            _growing(self._part, name, (), dtype)
        for array in schema.arrays:
            dataset = _growing(self._part, f"arrays/{array.name}", array.shape, "f4")
            dataset.attrs["unit"] = array.unit
            if len(array.labels) < MOST_LABELS:
                dataset.attrs["labels"] = list(array.labels) or h5py.Empty("S1")

    def _write(self) -> None:
        bins, self._bins = self._bins, []
        statuses, self._statuses = self._statuses, []
        if bins and self._part:
            for name, dtype in HEADER.items():
                _append(
                    self._part[name],
                    np.array([int(b.flags) if name == "flags" else getattr(b, name) for b in bins], dtype),
                )
            payload = np.stack([b.payload for b in bins])
            slices = bins[0].schema.slices if bins[0].schema else {}
            for name, (where, shape) in slices.items():
                _append(self._part[f"arrays/{name}"], payload[:, where].reshape(-1, *shape))
        if statuses:
            _append(self._file["status"], np.array(statuses, object))
        missing = min(self._n_missing, MOST_MISSING)
        if missing != self._file.attrs["missing"]:
            self._file.attrs["missing"] = missing
            self._file.attrs["holes"] = np.array(self._holes, "u8")


def _growing(group: h5py.Group, name: str, shape: tuple[int, ...], dtype: str) -> h5py.Dataset:
    row = int(np.prod(shape)) * np.dtype(dtype).itemsize
    chunk = (max(1, min(1024, CHUNK_BYTES // row)), *shape)
    return group.create_dataset(name, (0, *shape), dtype, maxshape=(None, *shape), chunks=chunk)


def _append(dataset: h5py.Dataset, rows: NDArray[np.generic]) -> None:
    n = len(dataset)
    dataset.resize(n + len(rows), axis=0)
    dataset[n:] = rows
