"""All of the daemon that depends on the bundle: a swap replaces it between two bins."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rtdsae import bundle as bundles
from rtdsae.bundle import Bundle
from rtdsae.errors import ConfigError
from rtdsae.serve.decoder import Decoder
from rtdsae.serve.engine import Engine
from rtdsae.serve.history import History
from rtdsae.serve.recent import Recent
from rtdsae.serve.settings import Model
from rtdsae.serve.wake import Rehearsal
from rtdsae.wire import Array, Encoder, Schema

__all__ = ["Pipeline"]

DEFAULT_ARRAYS = ("factors", "z", "behaviour")
INPUT = "counts"  # the bin itself, as the model got it: what `record` stores is the next training set
FORECASTS = {"forecast": "rates", "forecast_behaviour": "behaviour"}  # some bins ahead


class Pipeline:
    """A bundle that runs: bins in, frames out.

    Raises:
        BundleError: the bundle is not what it says, or does not come out right on this machine.
        ConfigError: it cannot be run as it is told.
    """

    def __init__(self, path: Path, session: str | None, model: Model, run: int, recent: Recent | None = None) -> None:
        self.bundle = bundles.load(path).session(session)
        manifest = self.bundle.manifest
        if manifest.external:
            needed = ", ".join(manifest.external)
            raise ConfigError(f"{self.bundle.path} needs the external inputs {needed}: a stream of neurons has none")
        self.channels, self.bin_width_s = manifest.channels, manifest.bin_width_s
        self.n_anchor, self.horizon = manifest.anchor_bins, manifest.horizon_bins
        self.schema = _schema(self.bundle, model)
        self.engine = Engine(self.bundle, model.provider)
        anchor = model.anchor or ("lanes" if manifest.lanes > 1 else "once")
        self.decoder = Decoder(self.engine, self.n_anchor, self.horizon, len(self.channels), anchor, recent)
        self.encoder = Encoder(self.schema, run)
        self.history = History(len(self.encoder.frame), round(model.history_s / self.bin_width_s))
        self.rehearse = Rehearsal(self.engine, len(self.channels), self.bin_width_s, self.schema)
        names = [array.name for array in self.schema.arrays]
        payload, outputs = self.encoder.payload, self.decoder.outputs
        self._input = payload.get(INPUT)
        self._now = [(payload[name], outputs[name]) for name in names if name in outputs]
        self._ahead = [(payload[name], outputs[FORECASTS[name]]) for name in names if name in FORECASTS]
        self._ahead_bins = model.forecast_bins if self._ahead else 0

    def decode(self, counts: NDArray[np.float32], observed: bool) -> int | None:
        """Takes the next bin `(C,)`: its flags, with the payload written; None while the model is not anchored."""
        flags = self.decoder.decode(counts, observed)
        if flags is None:
            return None
        if self._input is not None:
            self._input[:] = counts
        for frame, output in self._now:
            frame[:] = output
        if self._ahead_bins:
            self.decoder.look_ahead(self._ahead_bins)
            for frame, output in self._ahead:
                frame[:] = output
        return flags


def _schema(bundle: Bundle, model: Model) -> Schema:
    """What is published, in order."""
    manifest = bundle.manifest
    known = {o.name: Array(o.name, tuple(o.shape), o.unit, tuple(o.labels)) for o in manifest.outputs}
    known[INPUT] = Array(INPUT, (len(manifest.channels),), "spikes", tuple(manifest.channels))
    forecasts = {name: known[of] for name, of in FORECASTS.items() if of in known}
    names = model.publish or tuple(name for name in DEFAULT_ARRAYS if name in known)
    if model.forecast_bins and not set(names) & set(forecasts):
        names += tuple(forecasts)
    if unknown := [name for name in names if name not in known | forecasts]:
        there = ", ".join(known | forecasts)
        raise ConfigError(f"there is no {unknown[0]!r} to publish: {bundle.path} has {there}")
    if not model.forecast_bins and (wanted := [name for name in names if name in forecasts]):
        raise ConfigError(f"{wanted[0]}: how many bins ahead? Say --set model.forecast_bins=5, or another number")
    outputs = known | {name: replace(array, name=name) for name, array in forecasts.items()}
    return Schema(manifest.name, bundle.hash, manifest.bin_width_s, tuple(outputs[name] for name in names))
