"""The folder of a bundle: written whole or not at all, read into memory and verified."""

import hashlib
import io
import os
import secrets
import shutil
import stat
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from rtdsae.bundle.manifest import SESSION_FILES, WEIGHTS, Manifest, check_rules, parse, seal, session_path
from rtdsae.errors import BundleError, one_line

__all__ = ["Bundle", "check_replaceable", "load", "write"]

MAX_MANIFEST = 8 << 20  # bytes
MAX_FILE = 1 << 30  # bytes, packed or unpacked

_MANIFEST = "manifest.json"


@dataclass(frozen=True, eq=False)
class Bundle:
    """A verified bundle: its manifest, and the bytes of each of its files, by their path in it.

    The bundle as `session` gives it for a further session has that session's folder as its `path`.
    """

    path: Path
    manifest: Manifest
    files: Mapping[str, bytes]

    @property
    def hash(self) -> str:
        """64 hex digits that name this very content."""
        return self.manifest.manifest_sha256

    def session(self, name: str | None = None) -> "Bundle":
        """The bundle as one session has it: that session's channels, outputs, graphs and golden run.

        Args:
            name: the session; None where there is only one.

        Raises:
            BundleError: there is no such session, or several and none is named.
        """
        names = self.manifest.sessions
        if name is None and len(names) > 1:
            raise BundleError(f"{self.path}: has the sessions {', '.join(names)}: say which one with --session")
        if name is None or [name] == names:
            return self
        if [name] == names[:1]:
            return Bundle(self.path, msgspec.structs.replace(self.manifest, sessions=names[:1], further=[]), self.files)
        found = [session for session in self.manifest.further if session.name == name]
        if not found:
            raise BundleError(
                f"{self.path}: has no session {name!r}: it has {', '.join(names) or 'one without a name'}"
            )
        own = {field: getattr(found[0], field) for field in ("channels", "outputs", "normalisation")}
        own |= {"sessions": [name], "further": []}
        files = {file: self.files[session_path(name, file)] for file in SESSION_FILES}
        folder = (self.path / session_path(name, SESSION_FILES[0])).parent
        return Bundle(folder, msgspec.structs.replace(self.manifest, **own), {**self.files, **files})

    def weights(self) -> dict[str, NDArray[Any]]:
        """The model's parameters, by name.

        Raises:
            BundleError: the bundle was written without them, or they are damaged.
        """
        if WEIGHTS not in self.files:
            raise BundleError(f"{self.path}: was written without its weights: calibrate from the run instead")
        arrays = _read_npz(self.path / WEIGHTS, self.files[WEIGHTS])
        if wrong := [name for name, a in arrays.items() if a.dtype.kind not in "fiu" or not np.isfinite(a).all()]:
            raise BundleError(f"{self.path / WEIGHTS}: {wrong[0]!a} is not finite numbers: export it again")
        return arrays

    def golden(self) -> dict[str, NDArray[np.float32]]:
        """The golden run: `x (T, C)`, `observed (T,)`, `u (T, U)` where the model has it, outputs `(T - S, ...)`.

        Raises:
            BundleError: it is not what the manifest says.
        """
        where = self.path / "golden.npz"
        arrays = _read_npz(where, self.files["golden.npz"])
        n_bins = len(arrays["x"]) if arrays.get("x", np.zeros(())).ndim else 0
        expected = _golden_shapes(self.manifest, n_bins)
        if arrays.keys() != expected.keys() or n_bins <= self.manifest.anchor_bins:
            raise BundleError(f"{where}: needs {', '.join(expected)} for more than the anchor's bins: export it again")
        for name, shape in expected.items():
            array = arrays[name]
            if array.dtype != np.float32 or array.shape != shape or not np.isfinite(array).all():
                found = f"{array.dtype} {array.shape}"
                raise BundleError(f"{where}: {name} must be finite float32 {shape}, found {found}: export it again")
        return arrays


def load(folder: str | os.PathLike[str]) -> Bundle:
    """Reads a bundle and verifies all of it.

    Raises:
        BundleError: it is not a bundle, is altered, truncated, or of a newer format.
    """
    path = Path(folder)
    if (path / "run.json").exists() and not (path / "manifest.json").exists():
        raise BundleError(f"{path}: is a run, and no bundle: rtdsae export {path} --out FOLDER makes one of it")
    if not path.is_dir():
        what = "is a file" if path.exists() else "no such folder"
        raise BundleError(f"{path}: {what}: a bundle is a folder, made by rtdsae export")
    manifest = parse(path / _MANIFEST, _read(path / _MANIFEST, MAX_MANIFEST))
    expected = {_MANIFEST, *manifest.files}
    folders = {str(parent) for name in expected for parent in PurePosixPath(name).parents}
    if unexpected := sorted(_entries(path, folders) - expected - folders):
        raise BundleError(f"{path}: {unexpected[0]!a} is no part of a bundle: move it out of the folder")
    return Bundle(path, manifest, {name: _read_verified(path / name, manifest.files[name]) for name in manifest.files})


def _entries(path: Path, folders: set[str]) -> set[str]:
    """What lies in a bundle's folders, by its path in the bundle; names that begin with a dot are passed over."""
    found: set[str] = set()
    for folder in sorted(folders):
        where = path / folder
        if folder != "." and (where.is_symlink() or not where.is_dir()):
            raise BundleError(f"{where}: is missing or no folder: this is not a whole bundle, copy or export it again")
        found |= {str(PurePosixPath(folder) / entry.name) for entry in where.iterdir() if entry.name[0] != "."}
    return found


def write(
    folder: str | os.PathLike[str], manifest: Manifest, files: Mapping[str, bytes], *, overwrite: bool = False
) -> None:
    """Writes a bundle whole or not at all: it is loaded under a temporary name beside `folder` before it gets its own.

    Args:
        folder: the bundle to be; its parents are made.
        manifest: what the model is; `files` and `manifest_sha256` are filled in here.
        files: the bytes of each of FILES, of weights.npz where they are to be kept, and of each further session's three
            by its `session_path`.
        overwrite: replace what is there, provided that it is a bundle itself.

    Raises:
        BundleError: something is there already, the content is not a bundle's, or the disk does not take it.
    """
    path = Path(folder).absolute()
    check_replaceable(path, overwrite)
    expected = manifest.expected_files
    if set(files) - {WEIGHTS} != set(expected):
        raise BundleError(f"{path}: a bundle has the files {', '.join(expected)}, found {', '.join(sorted(files))}")
    # Before anything is written: a session's name is a path.
    check_rules(path, msgspec.structs.replace(manifest, files=dict.fromkeys(files, "")))
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        temporary.mkdir(parents=True)
        for name, content in {**files, _MANIFEST: seal(manifest, files)}.items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            _write_synced(temporary / name, content)
        made = load(temporary)
        made.golden()
        for session in manifest.further:
            made.session(session.name).golden()
        _take_place(temporary, path)
    except BundleError as error:
        raise BundleError(str(error).replace(str(temporary), str(path))) from error
    except OSError as error:
        raise BundleError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_replaceable(path: Path, overwrite: bool) -> None:
    """Refuse a place that a bundle cannot be written to, before the work is done that it is to hold.

    Raises:
        BundleError: something is there, and may not be replaced or is not a bundle.
    """
    if not path.exists() and not path.is_symlink():
        return
    if not overwrite:
        raise BundleError(f"{path}: exists already: choose another name, or replace it with --overwrite")
    if path.is_symlink() or not (path / _MANIFEST).is_file():
        raise BundleError(f"{path}: exists and is not a bundle, so it is not replaced: choose another name")


def _take_place(temporary: Path, path: Path) -> None:
    if not path.exists():
        temporary.rename(path)
        return
    old = temporary.with_name(f"{temporary.name}.old")
    path.rename(old)
    try:
        temporary.rename(path)
    except OSError:
        old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _read(path: Path, limit: int) -> bytes:
    """A regular file's bytes: no link, no pipe, nothing that fills the memory."""
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise BundleError(f"{path}: is not a regular file: copy the bundle itself, not links to it")
        if status.st_size > limit:
            raise BundleError(f"{path}: has {status.st_size} bytes, more than the {limit} that a bundle may have")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise BundleError(f"{path}: is missing: this is not a whole bundle, copy or export it again") from error
    except OSError as error:
        raise BundleError(f"{path}: cannot be read: {error.strerror or error}") from error


def _read_verified(path: Path, sha256: str) -> bytes:
    content = _read(path, MAX_FILE)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise BundleError(
            f"{path}: is not the file that the manifest describes (SHA-256 differs): copy or export again"
        )
    return content


def _golden_shapes(manifest: Manifest, n_bins: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"x": (n_bins, len(manifest.channels)), "observed": (n_bins,)}
    if manifest.external:
        shapes["u"] = (n_bins, len(manifest.external))
    return shapes | {o.name: (n_bins - manifest.anchor_bins, *o.shape) for o in manifest.outputs}


def _read_npz(path: Path, content: bytes) -> dict[str, NDArray[Any]]:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked > MAX_FILE:
            raise BundleError(f"{path}: unpacks to {unpacked} bytes, more than the {MAX_FILE} that it may have")
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return {name: np.asarray(arrays[name]) for name in arrays.files}
    except BundleError:
        raise
    except Exception as error:  # whatever zipfile and numpy stumble over in a file that somebody else made
        reason = one_line(str(error).partition("\n")[0] or type(error).__name__)
        raise BundleError(f"{path}: cannot be read as arrays: {reason}") from error
