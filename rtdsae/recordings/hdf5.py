"""Recordings as HDF5, in rtdsae's own form.

    /counts            (T, C) integers or floats          attribute bin_width_s   seconds      required
    /channels          (C,) text                          attribute session       text
    /segments          (n, 2) first and one-past-last bin
    /behaviour         (T, K)      /behaviour_labels  (K,) text
    /external          (T, U)      /external_labels   (U,) text
    /true_rates        (T, C) spikes/s
    /conditions        (n,) integers or text
    /labels            (n, L)      /label_names       (L,) text
    /splits            (n,) text: train, valid or test
    /heldout           (C,) true or false

Only `counts` and `bin_width_s` must be there. A file without `counts` but with `train_encod_data` is lfads-torch's.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rtdsae.errors import RecordingError
from rtdsae.recordings import lfads_torch
from rtdsae.recordings.recording import Recording, from_fields

if TYPE_CHECKING:
    import h5py

__all__ = ["SIGNATURE", "read", "write"]

SIGNATURE = b"\x89HDF\r\n\x1a\n"
ATTRIBUTES = ("bin_width_s", "session")


def read(path: Path, bin_width_s: float | None = None) -> Recording:
    """Read a recording from HDF5, in its own form or in lfads-torch's layout.

    Args:
        path: the file.
        bin_width_s: used where the file does not say.

    Raises:
        RecordingError: truncated, of neither layout, or impossible content.
    """
    import h5py

    try:
        with h5py.File(path, "r") as file:
            fields = {str(name): _value(file, name) for name in file}
            fields |= {name: _attribute(file.attrs[name]) for name in ATTRIBUTES if name in file.attrs}
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, MemoryError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise RecordingError(f"{path}: not a readable HDF5 file: {reason}") from None
    if bin_width_s is not None:
        fields.setdefault("bin_width_s", bin_width_s)
    if lfads_torch.recognises(fields):
        fields = lfads_torch.convert(fields, str(path))
    elif "counts" not in fields:
        found = ", ".join(sorted(fields)) or "nothing"
        raise RecordingError(f"{path}: neither 'counts' (rtdsae) nor 'train_encod_data' (lfads-torch); found {found}")
    return from_fields(fields, str(path))


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
    with h5py.File(path, "w", libver="v110") as file:
        for name, value in recording.fields().items():
            array = _plain(np.asarray(value))
            if name in ATTRIBUTES:
                file.attrs[name] = array
            else:
                file.create_dataset(name, data=array, chunks=True, compression="gzip", shuffle=True, fletcher32=True)


def _value(file: "h5py.File", name: str) -> Any:
    import h5py

    item = file[name]
    if not isinstance(item, h5py.Dataset):
        return None  # a group: its name is enough for the message that refuses it
    return item.asstr()[()] if h5py.check_string_dtype(item.dtype) else item[()]


def _attribute(value: Any) -> Any:
    return value.decode("utf-8") if isinstance(value, bytes) else value


def _plain(array: np.ndarray) -> np.ndarray:
    """Texts of fixed length: HDF5 keeps those of variable length in a heap that has no checksum."""
    import h5py

    if array.dtype.kind != "U":
        return array
    encoded = np.char.encode(array, "utf-8")
    return encoded.astype(h5py.string_dtype("utf-8", encoded.dtype.itemsize))
