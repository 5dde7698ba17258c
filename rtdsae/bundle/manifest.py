"""manifest.json: what a bundle says of itself, sealed by its own hash."""

import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from rtdsae.errors import BundleError, one_line

__all__ = [
    "FILES",
    "FORMAT",
    "OUTPUTS",
    "SESSION_FILES",
    "WEIGHTS",
    "Manifest",
    "Output",
    "Session",
    "StatePart",
    "check_rules",
    "is_name",
    "parse",
    "seal",
    "session_path",
]

FORMAT = 1
SESSION_FILES = ("anchor.onnx", "step.onnx", "golden.npz")
FILES = (*SESSION_FILES, "MODEL_CARD.md")
WEIGHTS = "weights.npz"
MAX_VALUES = 1 << 26  # of float32, in all lanes: 256 MiB
OUTPUTS = ("factors", "z", "f", "rates", "behaviour")  # of step.onnx, in this order; `rates` in spikes/s

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
    def behaviour_labels(self) -> list[str]:
        """The columns of the output `behaviour`; none where the model has no such output."""
        return [label for output in self.outputs if output.name == "behaviour" for label in output.labels]

    @property
    def expected_files(self) -> tuple[str, ...]:
        """The files that the sessions need, by their path in the bundle."""
        return FILES + tuple(session_path(s.name, name) for s in self.further for name in SESSION_FILES)


def session_path(session: str, file: str) -> str:
    """Where a further session's file is in a bundle."""
    return f"sessions/{session}/{file}"


def is_name(text: str) -> bool:
    """Whether a bundle or a further session can have this name."""
    return _NAME.fullmatch(text) is not None


class _Format(msgspec.Struct):
    format: int


def seal(manifest: Manifest, files: Mapping[str, bytes]) -> bytes:
    """The manifest's text, with the hashes of the files and of itself."""
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    draft = msgspec.structs.replace(manifest, files=hashes, manifest_sha256="0" * 64)
    text = msgspec.json.format(msgspec.json.encode(draft), indent=2) + b"\n"
    return _SEAL.sub(f'"manifest_sha256": "{hashlib.sha256(text).hexdigest()}"'.encode(), text)


def parse(path: Path, text: bytes) -> Manifest:
    """The manifest of this text, verified.

    Args:
        path: where it was read, for errors.
        text: the file's content.

    Raises:
        BundleError: it is no manifest, of a newer format, altered, or says what cannot be.
    """
    try:
        # The format first: of a newer one nothing else can be judged.
        found = msgspec.json.decode(text, type=_Format).format
        if found > FORMAT:
            raise BundleError(f"{path}: has bundle format {found}, this rtdsae reads {FORMAT}: upgrade rtdsae")
        manifest = msgspec.json.decode(text, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"{path}: is not a bundle's manifest: {one_line(error)}") from error
    _check_seal(path, text, manifest.manifest_sha256)
    check_rules(path, manifest)
    return manifest


def check_rules(path: Path, manifest: Manifest) -> None:
    """Refuse a manifest that says what cannot be.

    Raises:
        BundleError: with the first rule that does not hold.
    """
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
    yield 1e-4 <= manifest.bin_width_s <= 10, "bin_width_s must be above 0: from 0.0001 to 10 s"
    sizes = (manifest.anchor_bins, manifest.horizon_bins, manifest.lanes)
    yield min(sizes) >= 1, "anchor_bins, horizon_bins and lanes must be 1 or more"
    yield len(manifest.external) == len(set(manifest.external)), "external must be labels, each another one"
    yield from _neuron_rules(manifest)
    yield from _session_rules(manifest)
    yield 0 < len(parts) == len(set(parts)), "state must be parts, each of another name"
    yield all(part.size >= 1 for part in manifest.state), "state: a part's size must be 1 or more"
    yield _n_values(manifest) <= MAX_VALUES, f"its sizes come to more than {MAX_VALUES} values: it is no model's"
    needed = manifest.expected_files
    yield set(manifest.files) - {WEIGHTS} == set(needed), f"files must be {', '.join(needed)}"


def _n_values(manifest: Manifest) -> int:
    """How many values a runtime keeps for it: checked before it takes the memory for them."""
    sessions: list[Manifest | Session] = [manifest, *manifest.further]
    window = max(len(session.channels) for session in sessions) * manifest.anchor_bins
    outputs = max(sum(math.prod(output.shape) for output in session.outputs) for session in sessions)
    return manifest.lanes * (window + manifest.state_size + outputs + manifest.horizon_bins)


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
