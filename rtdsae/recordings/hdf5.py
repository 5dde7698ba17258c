"""Recordings as HDF5, in rtdsae's own form.

    /counts            (T, C) integers or floats          attribute bin_width_s   seconds      required
    /channels          (C,) text                          attribute session       text
    /segments          (n, 2) first and one-past-last bin   attribute generator   text, of generated neurons
    /behaviour         (T, K)      /behaviour_labels  (K,) text
    /external          (T, U)      /external_labels   (U,) text
    /true_rates        (T, C) spikes/s
    /conditions        (n,) integers or text
    /labels            (n, L)      /label_names       (L,) text
    /splits            (n,) text: train, valid or test
    /heldout           (C,) true or false

Only `counts` and `bin_width_s` must be there. A file without `counts` but with `train_encod_data` is lfads-torch's.
"""

import io
import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rtdsae.errors import RecordingError, one_line
from rtdsae.recordings import lfads_torch, mapped
from rtdsae.recordings.recording import Recording, from_fields, take_width

if TYPE_CHECKING:
    import h5py

__all__ = ["SIGNATURE", "opened", "read", "values", "write"]

SIGNATURE = b"\x89HDF\r\n\x1a\n"
MAX_RATIO = 1100  # gzip packs no tighter than 1 to 1032
ATTRIBUTES = ("bin_width_s", "session", "generator")


def read(path: Path, bin_width_s: float | None = None) -> Recording:
    """Read a recording from HDF5, in its own form or in lfads-torch's layout.

    Args:
        path: the file.
        bin_width_s: used where the file does not say.

    Raises:
        RecordingError: truncated, of neither layout, or impossible content.
    """
    with opened(path) as file:
        fields = {str(name): _value(file, name) for name in file}
        fields |= {name: _attribute(file.attrs[name]) for name in ATTRIBUTES if name in file.attrs}
    fields = take_width(fields, bin_width_s)
    if lfads_torch.recognises(fields):
        fields = lfads_torch.convert(fields, str(path))
    elif "counts" not in fields:
        found = ", ".join(sorted(fields)) or "nothing"
        raise RecordingError(f"{path}: neither 'counts' (rtdsae) nor 'train_encod_data' (lfads-torch); found {found}")
    return from_fields(fields, str(path))


@contextmanager
def opened(path: Path) -> Iterator["h5py.File"]:
    """An HDF5 file to read from; what goes wrong with it meanwhile is one clear error.

    Raises:
        RecordingError: truncated, damaged, or its datasets are not what the reader takes them for.
    """
    import h5py

    try:
        with h5py.File(path, "r") as file:
            yield file
    except LookupError as error:  # damaged, or written by another program
        raise RecordingError(f"{path}: an HDF5 file that lacks what is looked for: {one_line(error)}") from None
    except (OSError, ValueError, TypeError, AttributeError, RuntimeError, MemoryError) as error:
        raise RecordingError(f"{path}: not a readable HDF5 file: {one_line(error) or type(error).__name__}") from None


def values(dataset: Any) -> np.ndarray:
    """A dataset's numbers or texts, once it is certain that the file can hold so many.

    Raises:
        ValueError: it is no dataset, or larger than the whole file unpacked could be.
    """
    import h5py

    if not isinstance(dataset, h5py.Dataset):
        raise ValueError(f"{getattr(dataset, 'name', dataset)} is not a dataset")
    if dataset.nbytes > MAX_RATIO * Path(dataset.file.filename).stat().st_size:
        raise ValueError(f"{dataset.name} claims {dataset.nbytes} bytes, more than the file can hold")
    if h5py.check_string_dtype(dataset.dtype):
        return np.asarray(dataset.asstr()[()])
    return np.asarray(dataset[()] if dataset.nbytes <= mapped.LARGE else _unpacked(dataset))


def _unpacked(dataset: "h5py.Dataset") -> np.ndarray:
    """A large array, unpacked a part at a time onto the disk."""
    array = mapped.zeros(dataset.shape, dataset.dtype, f"{dataset.file.filename}: {dataset.name}")
    for part in _parts(dataset):
        array[part] = dataset[part]
    return array


def _parts(dataset: "h5py.Dataset") -> Iterator[tuple[slice, ...]]:
    """Parts that together are the dataset, each of whole chunks: no chunk is unpacked twice, be it all of a channel."""
    shape, block = dataset.shape, list(dataset.chunks or np.ones(dataset.ndim, int).tolist())
    for axis in reversed(range(dataset.ndim)):
        several = mapped.LARGE // 4 // (dataset.dtype.itemsize * math.prod(block))
        block[axis] = min(shape[axis], max(1, several) * block[axis])
    for corner in itertools.product(*map(range, [0] * len(shape), shape, block)):
        yield tuple(slice(first, first + size) for first, size in zip(corner, block, strict=True))


def write(recording: Recording, path: Path) -> None:
    """Write a recording in its own HDF5 form.

    Args:
        recording: what to write.
        path: the file.

    Raises:
        OSError: when it cannot be written.
    """
    import h5py

    # This version of the format has checksums over its own structures: the older one can hang its reader when damaged.
    with _Written(path, "w+b") as raw:
        try:
            with h5py.File(raw, "w", libver="v110") as file:
                for name, value in recording.fields().items():
                    array = _plain(np.asarray(value))
                    if name in ATTRIBUTES:
                        file.attrs[name] = array
                    else:
                        packed = {"compression": "gzip", "shuffle": True, "fletcher32": True}
                        file.create_dataset(name, data=array, chunks=True, **packed)
        except Exception:
            if raw.error is None:  # else it is what HDF5 makes of what was not written
                raise
        if raw.error is not None:
            raise raw.error


class _Written(io.FileIO):
    """A file for HDF5 to write to, to which a full disk may say no: HDF5 says nothing of it, and crashes later.

    Attributes:
        error: the first that went wrong. HDF5 is not told, and nothing is written after it.
    """

    error: OSError | None = None

    def write(self, data: Any) -> int:
        rest = memoryview(data).cast("B")
        while len(rest) and self.error is None:
            try:
                rest = rest[super().write(rest) :]
            except OSError as error:
                self.error = error
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
            return size or 0


def _value(file: "h5py.File", name: str) -> Any:
    import h5py

    item = file[name]
    if not isinstance(item, h5py.Dataset):
        return None  # a group: its name is enough for the message that refuses it
    found = values(item)
    return found if found.ndim else found[()]


def _attribute(value: Any) -> Any:
    return value.decode("utf-8") if isinstance(value, bytes) else value


def _plain(array: np.ndarray) -> np.ndarray:
    """Texts of fixed length: HDF5 keeps those of variable length in a heap that has no checksum."""
    import h5py

    if array.dtype.kind != "U":
        return array
    encoded = np.char.encode(array, "utf-8")
    return encoded.astype(h5py.string_dtype("utf-8", encoded.dtype.itemsize))
