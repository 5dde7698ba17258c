"""The daemon: decodes a live stream bin by bin and publishes what it finds. Start, main loop, drain, in this order.

The path of a bin is pull, bin, step, encode, send. Everything else (subscribers, status) happens after the send.
"""

import contextlib
import dataclasses
import gc
import logging
import secrets
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import msgspec
import numpy as np
import pylsl

from rtdsae import bundle as bundles
from rtdsae.bins import RegularBinner
from rtdsae.bundle import Bundle
from rtdsae.errors import ConfigError
from rtdsae.serve import source as sources
from rtdsae.serve.decoder import Decoder
from rtdsae.serve.engine import Engine
from rtdsae.serve.latency import Latency
from rtdsae.serve.publisher import Publisher
from rtdsae.serve.source import Source
from rtdsae.serve.wake import Rehearsal, Wake
from rtdsae.wire import Array, Encoder, Flags, Schema, encode_status

__all__ = ["Daemon", "Settings"]

log = logging.getLogger(__name__)

DEFAULT_ARRAYS = ("factors", "z", "behaviour")
STATUS_PERIOD_S = 1.0
CHORES_PERIOD_S = 0.02
SILENT_S = 1.0  # a stream without a sample for so long counts as not connected
DRAIN_S = 1.0  # for what has arrived and is not yet decoded, at the end
LATE = int(Flags.LATE)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What a daemon is told."""

    bundle: Path
    """Folder of the model's bundle."""
    session: str | None = None
    """Which of the bundle's sessions the stream's neurons are of; None where it has one."""
    stream: str = "type=Spikes"
    """Which LSL stream: key=value[,key=value] on its properties, or an XPath predicate."""
    pub: str = "tcp://127.0.0.1:5556"
    """Endpoint to publish on: loopback or ipc."""
    publish: tuple[str, ...] = ()
    """Names of the arrays to publish; none are factors, z and, where the bundle has it, behaviour."""
    timeout_s: float = 10.0
    """How long to wait for the stream to appear."""
    provider: str = "cpu"
    """ONNX Runtime's execution provider: cpu, cuda, ..."""
    wake: bool = True
    """Be awake and warm shortly before each sample."""


class Daemon:
    """Serves one bundle on one stream until it is told to stop.

    SIGTERM and SIGINT end the main loop; what has arrived by then is still decoded and published. A second SIGINT
    skips that.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.should_exit = False
        self.force_exit = False
        self.run_id = secrets.randbits(32)
        self._seq = 0
        self._source: Source | None = None
        self._connected = False
        self._last_input = -np.inf
        self._next_chores = self._next_status = -np.inf

    def run(self) -> None:
        """Runs until a signal.

        Raises:
            RtdsaeError: it cannot start: the bundle, the endpoint, the stream or a setting is wrong.
        """
        with self._signals(), contextlib.ExitStack() as self._open:
            if source := self._start():
                self._main_loop(source)
                self._drain(source)

    # start ------------------------------------------------------------------------------------------------------------

    def _start(self) -> Source | None:
        """Loads, checks, binds and connects; None when a signal came first."""
        bundle = bundles.load(self.settings.bundle).session(self.settings.session)
        self._bundle, manifest = bundle, bundle.manifest
        if manifest.external:
            needed = ", ".join(manifest.external)
            raise ConfigError(f"{bundle.path} needs the external inputs {needed}: a stream of counts has none")
        schema = self._schema(bundle)
        engine = Engine(bundle, self.settings.provider)
        self._decoder = Decoder(engine, manifest.anchor_bins, len(manifest.channels))
        self._binner = RegularBinner(len(manifest.channels), manifest.bin_width_s)
        self._encoder = Encoder(schema, self.run_id)
        self._copies = [(self._encoder.payload[a.name], engine.outputs[a.name]) for a in schema.arrays]
        self._bin_width_s, self._latency = manifest.bin_width_s, Latency()
        rehearsal = Rehearsal(engine, len(manifest.channels), manifest.bin_width_s, schema)
        self._wake = Wake(manifest.bin_width_s, rehearsal, wanted=self.settings.wake)
        self._publisher = Publisher(self.settings.pub, schema)
        self._open.callback(self._publisher.close)
        log.info("publishing %s on %s", ", ".join(schema.slices), self._publisher.endpoint)
        return self._connect()

    def _schema(self, bundle: Bundle) -> Schema:
        known = {output.name: output for output in bundle.manifest.outputs}
        names = self.settings.publish or tuple(name for name in DEFAULT_ARRAYS if name in known)
        if unknown := [name for name in names if name not in known]:
            raise ConfigError(f"there is no {unknown[0]!r} to publish: {bundle.path} has {', '.join(known)}")
        arrays = tuple(Array(o.name, tuple(o.shape), o.unit, tuple(o.labels)) for o in (known[name] for name in names))
        return Schema(bundle.manifest.name, bundle.hash, bundle.manifest.bin_width_s, arrays)

    def _connect(self) -> Source | None:
        channels = self._bundle.manifest.channels
        info = sources.find(self.settings.stream, self.settings.timeout_s, self._tick)
        if info is None:
            return None
        sources.check(info, len(channels), self._bin_width_s)
        self._source = Source(info, channels)
        self._open.callback(self._source.close)
        log.info("decoding stream %s, clock offset %.6f s", self._source.source_id, self._source.clock_offset_s)
        return self._source

    def _tick(self) -> bool:
        self._housekeep()
        return not self.should_exit

    # main loop --------------------------------------------------------------------------------------------------------

    def _main_loop(self, source: Source) -> None:
        gc.collect()
        gc.freeze()  # the collector then looks at young objects only, of which the loop makes no cycles
        while not self.should_exit:
            if self._wake.active and not source.available():
                self._wake.rest()
            if not self._take(source) or self._last_input >= self._next_chores:
                self._housekeep()

    def _take(self, source: Source) -> bool:
        """One sample through all stages; False when none came."""
        if not source.pull():
            return False
        self._last_input = t_in = pylsl.local_clock()
        self._wake.arrived(t_in, source.stamps[0])
        bins = self._binner.push(source.values, source.stamps)
        for i in range(len(bins.index)):
            flags = self._decoder.decode(bins.counts[i], bool(bins.observed[i]))
            if flags is not None:
                self._publish(int(bins.index[i]), float(bins.t_end[i]), t_in, flags)
        return True

    def _publish(self, bin_: int, t_bin: float, t_in: float, flags: int) -> None:
        for frame, output in self._copies:
            frame[:] = output
        t_out = pylsl.local_clock()
        if t_out > t_bin + self._bin_width_s:
            flags |= LATE
        self._publisher.send(self._encoder.encode(self._seq, bin_, t_bin, t_in, t_out, flags))
        self._seq += 1
        self._latency.add(t_out - t_in)

    # off the hot path -------------------------------------------------------------------------------------------------

    def _housekeep(self) -> None:
        """Looks after subscribers and status: not after each bin of a fast stream, whose delivery needs the core."""
        self._publisher.greet()
        now = pylsl.local_clock()
        self._next_chores = now + CHORES_PERIOD_S
        if now >= self._next_status:
            self._next_status = now + STATUS_PERIOD_S
            self._watch(now)
            self._publisher.send(encode_status(self._status()))

    def _watch(self, now: float) -> None:
        """Notices when the stream falls silent and when it comes back."""
        source, before = self._source, self._connected
        self._connected = source is not None and now - self._last_input < max(SILENT_S, 2 * self._bin_width_s)
        if source and self._connected != before:
            log.info("stream %s %s", source.source_id, "is live" if self._connected else "is silent: waiting for it")

    def _status(self) -> dict[str, object]:
        return {
            "run": self.run_id,
            "bundle": self._bundle.manifest.name,
            "session": next(iter(self._bundle.manifest.sessions), None),
            "bins": self._seq,
            **dataclasses.asdict(self._binner.counters),
            "anchors": self._decoder.anchors,
            "stream": self._stream_status(),
            "latency_us": self._latency.summary(),
        }

    def _stream_status(self) -> dict[str, object]:
        source = self._source
        return {
            "connected": self._connected,
            "source_id": source and source.source_id,
            "clock_offset_s": source and source.clock_offset_s,
        }

    # end --------------------------------------------------------------------------------------------------------------

    def _drain(self, source: Source) -> None:
        """Decodes what has already arrived, for a second at most, and says a last status."""
        deadline = pylsl.local_clock() + DRAIN_S
        while not self.force_exit and pylsl.local_clock() < deadline and source.available():
            self._take(source)
        self._next_status = -np.inf
        self._housekeep()
        log.info("published %d bins", self._seq)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        caught = (signal.SIGINT, signal.SIGTERM)
        before = [signal.signal(number, self._on_signal) for number in caught]
        try:
            yield
        finally:
            for number, handler in zip(caught, before, strict=True):
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.force_exit = self.should_exit and number == signal.SIGINT
        self.should_exit = True
