"""A bundle: the folder that is a trained model, all that `rtdsae serve` needs.

    manifest.json    what the model is, its state's layout, and the SHA-256 of each file, itself included
    anchor.onnx      the first S bins -> state
    step.onnx        a bin and the state -> the outputs and the next state
    golden.npz       a stretch of real input and what the model gave for it where it was trained
    MODEL_CARD.md    for people
    weights.npz      the parameters, for `rtdsae calibrate`; may be absent
    sessions/NAME/   graphs and golden run of each further session: other neurons, the same model

Everything is read into memory and verified before any of it is used, and nothing in it is unpickled or executed.
The hashes find damage and mix-ups. They are no signature: who can write the folder can write another true bundle.
"""

import hashlib
import io
import math
import os
import re
import secrets
import shutil
import stat
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from rtdsae.errors import BundleError

__all__ = [
    "FILES",
    "FORMAT",
    "OUTPUTS",
    "Bundle",
    "Manifest",
    "Output",
    "Session",
    "StatePart",
    "check_replaceable",
    "is_name",
    "load",
    "session_path",
    "write",
]

FORMAT = 1
SESSION_FILES = ("anchor.onnx", "step.onnx", "golden.npz")
FILES = (*SESSION_FILES, "MODEL_CARD.md")
WEIGHTS = "weights.npz"
OUTPUTS = ("factors", "z", "f", "rates", "behaviour")  # of step.onnx, in this order; `rates` in spikes/s

MAX_MANIFEST = 8 << 20  # bytes
MAX_FILE = 1 << 30  # bytes, packed or unpacked

_MANIFEST = "manifest.json"
_SESSIONS = "sessions"
_SEAL = re.compile(rb'"manifest_sha256": ?"([0-9a-f]{64})"')
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class Output(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One output of `step.onnx`: its shape without the lane dimension; labels, where given, name its last axis."""

    name: str
    shape: list[int]
    unit: str = ""
    labels: list[str] = []


class StatePart(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A slice of the packed state; the parts follow one another."""

    name: str
    size: int


class Session(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is its own of a session: its neurons, and so the input's and the rates' shapes."""

    name: str
    channels: list[str]
    outputs: list[Output]
    normalisation: dict[str, Any]


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`manifest.json`. `files` and `manifest_sha256` are filled in by `write`.

    `channels`, `outputs` and `normalisation` are the first session's; the others' are in `further`.
    """

    format: int = FORMAT
    name: str
    family: str
    config: dict[str, Any]
    channels: list[str]
    bin_width_s: float
    anchor_bins: int  # S: what the anchor sees
    horizon_bins: int  # R: how far beyond it the model was trained
    lanes: int
    external: list[str] = []
    outputs: list[Output]
    state: list[StatePart]
    normalisation: dict[str, Any]
    sessions: list[str]
    further: list[Session] = []
    provenance: dict[str, Any]
    scores: dict[str, Any]
    files: dict[str, str] = {}
    manifest_sha256: str = ""

    @property
    def state_size(self) -> int:
        """Values in one lane's state."""
        return sum(part.size for part in self.state)

    def output(self, name: str) -> Output:
        """The output of this name.

        Raises:
            BundleError: the model has no such output.
        """
        for output in self.outputs:
            if output.name == name:
                return output
        found = ", ".join(output.name for output in self.outputs)
        raise BundleError(f"bundle {self.name}: no output {name!r}: it has {found}")

    @property
    def expected_files(self) -> tuple[str, ...]:
        """The files that the sessions need, by their path in the bundle."""
        return FILES + tuple(session_path(s.name, name) for s in self.further for name in SESSION_FILES)


def session_path(session: str, file: str) -> str:
    """Where a further session's file is in a bundle."""
    return f"{_SESSIONS}/{session}/{file}"


def is_name(text: str) -> bool:
    """Whether a bundle or a further session can have this name."""
    return _NAME.fullmatch(text) is not None


class _Format(msgspec.Struct):
    format: int


@dataclass(frozen=True, eq=False)
class Bundle:
    """A verified bundle: its manifest, and the bytes of each of its files, by their path in it.

    As one further session has it, `path` is that session's folder.
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
        path = self.path / _SESSIONS / name
        return Bundle(path, msgspec.structs.replace(self.manifest, **own), {**self.files, **files})

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
    if not path.is_dir():
        raise BundleError(f"{path}: no such folder: a bundle is a folder, made by rtdsae export")
    manifest = _read_manifest(path / _MANIFEST)
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
    _check_rules(path, msgspec.structs.replace(manifest, files=dict.fromkeys(files, "")))
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        temporary.mkdir(parents=True)
        for name, content in {**files, _MANIFEST: _seal(manifest, files)}.items():
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


def _seal(manifest: Manifest, files: Mapping[str, bytes]) -> bytes:
    """The manifest's text, with the hashes of the files and of itself."""
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    draft = msgspec.structs.replace(manifest, files=hashes, manifest_sha256="0" * 64)
    text = msgspec.json.format(msgspec.json.encode(draft), indent=2) + b"\n"
    return _SEAL.sub(f'"manifest_sha256": "{hashlib.sha256(text).hexdigest()}"'.encode(), text)


def check_replaceable(path: Path, overwrite: bool) -> None:
    """Refuse a place that a bundle cannot be written to, before the work is done that it is to hold.

    Raises:
        BundleError: something is there, and may not be replaced or is not a bundle.
    """
    if not path.exists() and not path.is_symlink():
        return
    if not overwrite:
        raise BundleError(f"{path}: exists already: choose another name")
    if path.is_symlink() or not (path / _MANIFEST).is_file():
        raise BundleError(f"{path}: exists and is not a bundle, so it is not replaced: choose another name")


def _take_place(temporary: Path, path: Path) -> None:
    if not path.exists():
        temporary.rename(path)
        return
    old = temporary.with_suffix(".old")
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


def _read_manifest(path: Path) -> Manifest:
    text = _read(path, MAX_MANIFEST)
    try:
        # The format first: of a newer one nothing else can be judged.
        found = msgspec.json.decode(text, type=_Format).format
        if found > FORMAT:
            raise BundleError(f"{path}: has bundle format {found}, this rtdsae reads {FORMAT}: upgrade rtdsae")
        manifest = msgspec.json.decode(text, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"{path}: is not a bundle's manifest: {error}") from error
    _check_seal(path, text, manifest.manifest_sha256)
    _check_rules(path, manifest)
    return manifest


def _check_rules(path: Path, manifest: Manifest) -> None:
    for holds, rule in _rules(manifest):
        if not holds:
            raise BundleError(f"{path}: {rule}")


def _check_seal(path: Path, text: bytes, sha256: str) -> None:
    seals = list(_SEAL.finditer(text))
    if len(seals) != 1:
        raise BundleError(f"{path}: needs one manifest_sha256, found {len(seals)}: copy or export the bundle again")
    start, end = seals[0].span(1)
    blank = text[:start] + b"0" * 64 + text[end:]
    if not hashlib.sha256(blank).hexdigest() == seals[0][1].decode() == sha256:
        raise BundleError(f"{path}: has been altered (its own SHA-256 differs): copy or export the bundle again")


def _rules(manifest: Manifest) -> Iterator[tuple[bool, str]]:
    """What must hold of a manifest beyond its types."""
    parts = [part.name for part in manifest.state]
    texts = [manifest.family, *manifest.external, *manifest.sessions, *parts]

    yield manifest.format == FORMAT, f"format {manifest.format} does not exist: it must be {FORMAT}"
    yield is_name(manifest.name), "name must be letters, digits, '.', '_' and '-', 100 at most"
    yield all(text.isprintable() for text in texts), "labels, units and names must be printable, on one line"
    yield math.isfinite(manifest.bin_width_s) and manifest.bin_width_s > 0, "bin_width_s must be above 0"
    yield (
        min(manifest.anchor_bins, manifest.horizon_bins, manifest.lanes) >= 1,
        ("anchor_bins, horizon_bins and lanes must be 1 or more"),
    )
    yield len(manifest.external) == len(set(manifest.external)), "external must be labels, each another one"
    yield from _neuron_rules(manifest)
    yield from _session_rules(manifest)
    yield 0 < len(parts) == len(set(parts)), "state must be parts, each of another name"
    yield all(part.size >= 1 for part in manifest.state), "state: a part's size must be 1 or more"
    needed = manifest.expected_files
    yield set(manifest.files) - {WEIGHTS} == set(needed), f"files must be {', '.join(needed)}"


def _neuron_rules(of: Manifest | Session) -> Iterator[tuple[bool, str]]:
    """What must hold of a session's channels and outputs."""
    names = [output.name for output in of.outputs]
    texts = [*of.channels, *(text for output in of.outputs for text in (output.unit, *output.labels))]
    yield all(text.isprintable() for text in texts), "labels, units and names must be printable, on one line"
    yield 0 < len(of.channels) == len(set(of.channels)), "channels must be labels, each another one"
    yield names == [name for name in OUTPUTS if name in names], f"outputs must be of {', '.join(OUTPUTS)}, in order"
    yield {"factors", "rates"} <= set(names), "outputs must have factors and rates"
    for output in of.outputs:
        sizes, labels = output.shape, output.labels
        yield bool(sizes) and min(sizes) >= 1, f"output {output.name}: shape must be sizes of 1 or more"
        yield not labels or len(labels) == sizes[-1], f"output {output.name}: {len(labels)} labels for shape {sizes}"
    rates = of.outputs[names.index("rates")].shape  # of the channels, and of held-out neurons where there were any
    yield len(rates) == 1 and rates[0] >= len(of.channels), "output rates must have a value for each channel"


def _session_rules(manifest: Manifest) -> Iterator[tuple[bool, str]]:
    """What must hold of several sessions: each is the first one but for its neurons."""
    names = manifest.sessions
    yield len(names) == len(set(names)), "sessions must be names, each another one"
    yield names[1:] == [session.name for session in manifest.further], "further must be the sessions after the first"
    for session in manifest.further:
        yield is_name(session.name), "a session's name must be letters, digits, '.', '_' and '-'"
        for holds, rule in _neuron_rules(session):
            yield holds, f"session {session.name}: {rule}"
        same = _latents(session.outputs) == _latents(manifest.outputs)
        yield same, f"session {session.name}: its outputs but for rates must be the first session's"


def _latents(outputs: list[Output]) -> list[Output]:
    return [output for output in outputs if output.name != "rates"]


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
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise BundleError(f"{path}: cannot be read as arrays: {reason}") from error
