"""MATLAB files as plain values: those up to v7, and v7.3, which is HDF5. Nothing in them is evaluated.

A struct is a dict, a struct array a list of dicts, a cell a list, text a str; a matrix keeps MATLAB's two dimensions.
What is sparse, complex or an object is None.
"""

import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rtdsae.errors import RecordingError, one_line
from rtdsae.recordings import mat5
from rtdsae.recordings.hdf5 import opened, values

if TYPE_CHECKING:
    import h5py

__all__ = ["SIGNATURE", "load"]

SIGNATURE = b"MATLAB "
MAX_DEPTH = 8  # structs in structs


def load(path: Path) -> dict[str, Any]:
    """The variables of a file, by name.

    Raises:
        RecordingError: damaged.
    """
    with path.open("rb") as file:
        newest = file.read(10) == b"MATLAB 7.3"
    if newest:
        with opened(path) as file:
            return {name: _of_hdf5(item) for name, item in file.items() if not name.startswith("#")}
    try:
        return mat5.variables(path.read_bytes())
    except (ValueError, OverflowError, struct.error, zlib.error, MemoryError) as error:
        raise RecordingError(f"not a readable MATLAB file: {one_line(error) or type(error).__name__}") from None


def _of_hdf5(item: "h5py.Group | h5py.Dataset", depth: int = 0) -> Any:
    """MATLAB keeps columns first, hence the transposes; a struct array is a group of arrays of references."""
    import h5py

    if depth > MAX_DEPTH:
        return None
    if "MATLAB_sparse" in item.attrs:
        return None
    if isinstance(item, h5py.Group):
        fields = {name: field for name, field in item.items() if not name.startswith("#")}
        arrays = [isinstance(f, h5py.Dataset) and "MATLAB_class" not in f.attrs and _refers(f) for f in fields.values()]
        if not arrays or not all(arrays):
            return {name: _of_hdf5(field, depth + 1) for name, field in fields.items()}
        columns = {name: _followed(field, depth) for name, field in fields.items()}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    kind = item.attrs.get("MATLAB_class", b"")
    if "MATLAB_empty" in item.attrs:
        return "" if kind == b"char" else np.zeros((0, 0))
    if _refers(item):
        return _followed(item, depth)
    found = values(item)
    if kind == b"char":
        return "".join(map(chr, found.T.ravel().astype(int)))
    return found.T if found.dtype.kind in "iufb" else None


def _refers(dataset: "h5py.Dataset") -> bool:
    import h5py

    return h5py.check_ref_dtype(dataset.dtype) is h5py.Reference


def _followed(dataset: "h5py.Dataset", depth: int) -> list[Any]:
    return [_of_hdf5(dataset.file[reference], depth + 1) for reference in values(dataset).ravel()]
