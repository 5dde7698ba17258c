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

from rtdsae.bundle.folder import Bundle, check_replaceable, load, write
from rtdsae.bundle.manifest import (
    FILES,
    FORMAT,
    OUTPUTS,
    SESSION_FILES,
    WEIGHTS,
    Manifest,
    Output,
    Session,
    StatePart,
    is_name,
    session_path,
)

__all__ = [
    "FILES",
    "FORMAT",
    "OUTPUTS",
    "SESSION_FILES",
    "WEIGHTS",
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
