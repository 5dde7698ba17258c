"""The daemon: decodes a live stream bin by bin and publishes what it finds. Start, main loop, drain, in this order.

The path of a bin is pull, bin, step, encode, send. Everything else (history, anchors, subscribers, status) happens
after the send; control, metrics and the search for a lost stream are in threads of their own.
"""

import contextlib
import dataclasses
import logging
import secrets
import signal
import threading
from pathlib import Path

import msgspec
import numpy as np

from rtdsae import bundle as bundles
from rtdsae import shipped
from rtdsae.bins import BinCounters, Bins
from rtdsae.errors import RtdsaeError
from rtdsae.serve import intake as intakes
from rtdsae.serve.clock import local_clock
from rtdsae.serve.control import Control
from rtdsae.serve.dry_run import dry_run
from rtdsae.serve.endpoint import Endpoints
from rtdsae.serve.handover import Handover
from rtdsae.serve.history import History
from rtdsae.serve.intake import Intake
from rtdsae.serve.latency import Latency
from rtdsae.serve.link import Link
from rtdsae.serve.outlet import Outlet
from rtdsae.serve.pipeline import Pipeline
from rtdsae.serve.provider import AUTO, quickest
from rtdsae.serve.publisher import Publisher
from rtdsae.serve.realtime import RealTime, settle
from rtdsae.serve.settings import Settings
from rtdsae.serve.source import Lost, Source, Wanted
from rtdsae.serve.systemd import Notifier
from rtdsae.serve.wake import Wake
from rtdsae.signals import caught
from rtdsae.wire import Flags, Schema, encode_status

__all__ = ["Daemon"]

log = logging.getLogger(__name__)

STATUS_PERIOD_S = 1.0
CHORES_PERIOD_S = 0.02
PATIENCE_S = 10.0  # with a stream of which nothing comes out
DRAIN_S = 1.0  # for what was sent and is not yet decoded, at the end
LOADING_S = 5.0  # likewise, for a swap to leave ONNX Runtime
LATE, SWAPPED = int(Flags.LATE), int(Flags.SWAPPED)


class Daemon:
    """Serves one bundle on one stream until it is told to stop.

    SIGTERM and SIGINT end the main loop; what was sent by then is still decoded and published. A second SIGINT skips
    that.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.should_exit = False
        self.force_exit = False
        self.run_id = secrets.randbits(32)
        self._notifier = Notifier()
        self._loading = threading.Lock()  # a swap, its graphs
        self._last_status: dict[str, object] = {}
        self._seq = 0
        self._intake: Intake
        self._counters = BinCounters()
        self._outlet: Outlet | None = None
        self._next_outlet: Outlet | None = None  # made before a swap, off the hot path
        self._flags = 0  # for the next bin that is published
        self._bins_late = 0
        self._last_pull = self._last_input = -np.inf
        self._decoded_to = -np.inf  # the end of the last bin
        self._next_chores = self._next_status = -np.inf
        self._explain_at = np.inf
        self._overdue = False  # an anchor, and it was said

    def run(self) -> None:
        """Runs until a signal or a request to stop.

        Raises:
            RtdsaeError: it cannot start: the bundle, the endpoint, the stream or a setting is wrong.
        """
        with caught(self._on_signal), contextlib.ExitStack() as self._open:
            if started := self._start():
                self._main_loop()
            self._notifier.stopping()
            if started:
                self._drain()

    # start ------------------------------------------------------------------------------------------------------------

    def _start(self) -> bool:
        """Loads, checks, binds and connects; False when a signal came first."""
        if self.settings.model.provider == AUTO:
            self.settings = _with_quickest(self.settings)  # a swapped bundle runs there, too
        settings = self.settings
        # Taken for good: Python ends its threads, and one within ONNX Runtime would take the process with it (SIGABRT).
        self._open.callback(self._loading.acquire, timeout=LOADING_S)
        RealTime(settings.priority, settings.cpus, settings.lock_memory).apply()
        self._pipeline = Pipeline(settings.bundle, settings.session, settings.model, self.run_id)
        manifest = self._pipeline.bundle.manifest
        self._bin_width_s, self._latency = manifest.bin_width_s, Latency()
        self._wake = Wake(self._bin_width_s, self._prepare, settings.wake)
        if settings.wake == "poll" and not self._wake.active:
            log.info("wake=poll: bins of %g ms are not polled for, only those of 4 to 200 ms", 1e3 * self._bin_width_s)
        self._handover = Handover()
        self._endpoints = Endpoints(settings.keys)
        self._open.callback(self._endpoints.close)
        self._publisher = Publisher(settings.pub, self._pipeline.schema, self._endpoints)
        self._open.callback(self._publisher.close)
        log.info("publishing %s on %s", ", ".join(self._pipeline.schema.slices), self._publisher.endpoint)
        wanted = Wanted(manifest.channels, self._bin_width_s, settings.input, settings.match)
        self._link = Link(settings.stream, wanted, settings.silence_s)
        self._open.callback(self._link.close)
        self._last_status = self._status()
        if settings.control:
            control = Control(settings.control, self, self._endpoints)
            self._open.callback(control.close)
            log.info("taking requests on %s", control.endpoint)
        if settings.metrics:
            from rtdsae.serve.metrics import Metrics

            metrics = Metrics(settings.metrics, self.status, self._latency)
            self._open.callback(metrics.close)
            log.info("serving metrics on http://%s/metrics", metrics.address)
        self._open.callback(self._notifier.close)
        self._notifier.ready()
        return self._connect()

    def _connect(self) -> bool:
        source = self._link.open(self.settings.timeout_s, self._tick)
        if source is None:
            return False
        self._next_chores = self._next_status = -np.inf  # the status names the stream at once
        self._intake = intakes.make(
            source.kind,
            source.samples_per_bin,
            len(self._pipeline.channels),
            self._bin_width_s,
            reduce=self.settings.reduce,
            lateness_s=self.settings.lateness_s,
            silence_s=self.settings.silence_s,
        )
        self._counters = self._intake.counters
        self._explain_at = local_clock() + max(PATIENCE_S, 2 * self._pipeline.n_anchor * self._bin_width_s)
        if name := self.settings.lsl_out:
            if self.settings.keys:
                log.warning("lsl_out: the LSL stream %s is open to all that LSL reaches: LSL knows no keys", name)
            self._outlet = Outlet(name, self._pipeline.schema)
        return True

    def _tick(self) -> bool:
        self._housekeep()
        return not self.should_exit

    # main loop --------------------------------------------------------------------------------------------------------

    def _main_loop(self) -> None:
        settle()
        while not self.should_exit:
            source = self._link.source
            if source is None:
                self._decode(self._intake.without_stream(), local_clock())
                self._housekeep()
                continue
            decoded_to = self._decoded_to
            if self._wake.active and not self._ready():
                self._wake.rest(self._ready)
                if self._link.source is not source:  # it was lost, or another took its place
                    continue
            came_early = self._decoded_to != decoded_to  # else the next bin would find nobody prepared
            if not (came_early or self._take(source)) or self._last_pull >= self._next_chores:
                self._housekeep()

    def _prepare(self) -> None:
        """Shortly before a bin is complete: sends one through all stages in vain; what has come, before and after."""
        self._take_early()
        self._publisher.rehearse(self._pipeline.rehearse())
        self._take_early()

    def _take_early(self) -> None:
        if source := self._link.source:
            self._take(source, early=True)

    def _ready(self) -> bool:
        """Whether what completes the open bin is there."""
        source = self._link.source
        return source is None or not self._intake.idle(source)

    def _take(self, source: Source, early: bool = False) -> bool:
        """What has come, through all stages; False when nothing has. Early: a bin's rest is not waited for."""
        try:
            if not (self._intake.pull_early(source) if early else self._intake.pull(source)):
                return False
        except Lost as error:
            self._link.lose(source, error)
            return False
        self._last_pull = t_in = local_clock()
        if source.n_taken:  # else it is the clock that completes a bin of events
            self._last_input = t_in
        self._decode(self._intake.bins(source), t_in)
        return True

    def _decode(self, bins: Bins, t_in: float) -> None:
        for i in range(len(bins.index)):
            if i and local_clock() >= self._next_chores:  # of a long gap: whoever watches us has to hear of us
                self._housekeep()
                if self.force_exit:
                    return
            flags = self._pipeline.decode(bins.counts[i], bins.observed.item(i))
            if flags is not None:
                self._publish(bins.index.item(i), bins.t_end.item(i), t_in, flags)
            self._pipeline.decoder.anchor_if_due()
            if self._handover.waiting:
                self._hand_over()
        if len(bins.index):
            self._decoded_to = bins.t_end.item(-1)
            if self._wake.active:
                self._wake.arrived(t_in, self._decoded_to)

    def _publish(self, bin_: int, t_bin: float, t_in: float, flags: int) -> None:
        t_out = local_clock()
        flags |= self._flags
        if t_out > t_bin + self._bin_width_s:
            flags |= LATE
            self._bins_late += 1
        frame = self._pipeline.encoder.encode(self._seq, bin_, t_bin, t_in, t_out, flags)
        self._publisher.send(frame)
        self._seq += 1
        self._flags = 0
        self._latency.add(t_out - t_in)
        self._pipeline.history.add(frame)
        if self._outlet:
            self._outlet.push(self._pipeline.encoder.values, t_bin, flags)

    # what control asks for, in its own thread -------------------------------------------------------------------------

    def status(self) -> dict[str, object]:
        """The last status, at most a second old."""
        return self._last_status

    def schema(self) -> Schema:
        """What is published now."""
        return self._pipeline.schema

    def kept(self) -> tuple[int, int] | None:
        """The oldest and the newest `seq` in the history."""
        spans = [span for part in self._histories() if (span := part.kept)]
        return (spans[0][0], spans[-1][1]) if spans else None

    def history(self, first: int, last: int) -> list[bytes]:
        """What was published, `seq` first to last, as far as it is kept."""
        return [frame for part in self._histories() for frame in part.frames(first, last)]

    def _histories(self) -> list[History]:
        now = self._pipeline.history  # first: while a swap is going on it may be among the past ones too
        if now.is_full:
            return [now]
        return [*(past for past in self._handover.past if past is not now), now]

    def anchor(self) -> None:
        """Has the model anchored after the next bin that completes S whole ones."""
        self._pipeline.decoder.want_anchor()

    def swap(self, bundle: Path, session: str | None) -> dict[str, object]:
        """Loads and checks another bundle here, and has it take over between two bins; returns when it has.

        Raises:
            RtdsaeError: it cannot take over; the present one runs on.
        """
        running, settings, bundle = self._pipeline, self.settings, shipped.model(bundle)
        dry_run(bundle, session, settings.model.provider)
        with self._loading:
            new = Pipeline(bundle, session, settings.model, self.run_id, running.decoder.recent)
        if self._outlet and settings.lsl_out and not self._outlet.fits(new.schema):
            log.warning("LSL stream %s begins anew: the new model publishes other arrays", settings.lsl_out)
            self._next_outlet = Outlet(settings.lsl_out, new.schema)
        try:
            self._handover.offer(new, running)
        except RtdsaeError:
            self._next_outlet = None
            raise
        log.info("swapped %s for %s", running.bundle.path, bundle)
        return {"bundle": new.bundle.manifest.name, "seq": new.history.first}

    def stop(self) -> None:
        """Ends the main loop."""
        self.should_exit = True

    def _hand_over(self) -> None:
        """Between two bins: the new model anchored on the last ones, if it can be, and the old one left."""
        if new := self._handover.take(self._pipeline, self._seq):
            new.decoder.anchors += self._pipeline.decoder.anchors  # since the daemon's start
            self._pipeline = new
            self._flags |= SWAPPED
            self._publisher.announce(new.schema)
            if self._outlet and self._next_outlet:
                threading.Thread(target=self._outlet.close, daemon=True).start()
                self._outlet, self._next_outlet = self._next_outlet, None

    # off the hot path -------------------------------------------------------------------------------------------------

    def _housekeep(self) -> None:
        """Looks after subscribers and status: not after each bin of a fast stream, whose delivery needs the core."""
        self._notifier.watchdog()
        self._publisher.greet()
        self._link.renew(self._last_input)
        now = local_clock()
        self._next_chores = now + CHORES_PERIOD_S
        if now >= self._next_status:
            self._next_status = now + STATUS_PERIOD_S
            self._link.watch(now - self._last_input)
            if self._pipeline.history.is_full:
                self._handover.past = ()
            self._last_status = self._status()
            self._publisher.send(encode_status(self._last_status))
            if now >= self._explain_at and self._explain():
                self._explain_at = np.inf
            self._watch_anchors()

    def _explain(self) -> bool:
        """Says why a stream that is there brings no bin: its rate is another than it says, or its values are none.

        False while nothing can be said yet.
        """
        if self._seq == 0 and self._counters.gaps:
            seen = ", ".join(f"{name} {n}" for name, n in dataclasses.asdict(self._counters).items() if n)
            log.warning(
                "nothing is published yet: no %d bins came without a gap, on which to anchor the model (%s); does the "
                "stream send at the rate that it names?",
                self._pipeline.n_anchor,
                seen,
            )
        return bool(self._seq or self._counters.gaps)

    def _watch_anchors(self) -> None:
        """Says once that gaps keep the model from being anchored for longer than the R bins that it was trained for."""
        pipeline, before = self._pipeline, self._overdue
        self._overdue = pipeline.decoder.overdue > pipeline.horizon
        if self._overdue and not before:
            log.warning(
                "an anchor is %d bins overdue, for want of %d without a gap: the model runs on for longer than trained",
                pipeline.decoder.overdue,
                pipeline.n_anchor,
            )

    def _status(self) -> dict[str, object]:
        manifest = self._pipeline.bundle.manifest
        return {
            "run": self.run_id,
            "bundle": manifest.name,
            "session": next(iter(manifest.sessions), None),
            "bins": self._seq,
            "bins_late": self._bins_late,
            **dataclasses.asdict(self._counters),
            "anchors": self._pipeline.decoder.anchors,
            "stream": self._link.status(),
            "latency_us": self._latency.summary(),
        }

    # end --------------------------------------------------------------------------------------------------------------

    def _drain(self) -> None:
        """Decodes what was sent until now, for a second at most, and says a last status.

        LSL may not have it all in hand yet, if the whole process was stopped: so it is waited for a moment.
        """
        told = local_clock()
        while not self.force_exit and local_clock() < told + DRAIN_S:
            source = self._link.source
            if not (source and (source.available() or self._decoded_to < told) and self._take(source)):
                break
        else:
            self._link.abandon()
        self._next_status = -np.inf
        self._housekeep()
        log.info("published %d bins", self._seq)

    def _on_signal(self, number: int) -> None:
        self.force_exit = self.should_exit and number == signal.SIGINT
        self.should_exit = True


def _with_quickest(settings: Settings) -> Settings:
    """The same, with the provider that `auto` stands for here."""
    provider = quickest(bundles.load(settings.bundle).session(settings.session))
    return msgspec.structs.replace(settings, model=msgspec.structs.replace(settings.model, provider=provider))
