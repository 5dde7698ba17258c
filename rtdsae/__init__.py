"""rtdsae: train causal-split sequential autoencoders on neural recordings, and stream their latents live."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rtdsae.client import Subscriber

__version__ = "0.1.0"
__all__ = ["Subscriber", "__version__"]

# ONNX Runtime reports models and timings to its maker from 1.29 on, unless this is set before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def __getattr__(name: str) -> object:
    # ZeroMQ is imported when a Subscriber is asked for, so that `import rtdsae` itself costs nothing.
    if name == "Subscriber":
        from rtdsae.client import Subscriber

        return Subscriber
    raise AttributeError(f"module 'rtdsae' has no attribute {name!r}")
