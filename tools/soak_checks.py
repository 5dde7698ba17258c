"""What a soak has seen of each daemon, against what its sources pushed: all of it from outside."""

import abc
import contextlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from soak_parts import BACKWARD, DUPLICATE, GOOD, HUGE, NAN
from toy_bundle import Lanes, Toy

from rtdsae.wire import Flags, Latents

# What is published; the first is the bin itself.
ARRAYS = ("counts", "factors", "z", "behaviour", "forecast", "forecast_behaviour")

TOLERANCE = 2e-4  # of values: float32 sums in another order
NEAR_S = 1e-3  # that a clock may be measured wrong by, where nothing is held up; it is the same one in truth
CLOCK_S = 0.1  # that it may be measured wrong by at all
EXACT_S = 2e-6  # between a bin's end and its last sample, but for the clock
FOLLOWING = 8  # bins by whose samples the clock is found
AWAKE_S = 0.1  # between two bins of a daemon that is not held up
IN_FLIGHT_S = 0.2  # of samples that a source, or of bins that a daemon, may take with it; more where it was held up
KEPT_S = 8.0  # that a daemon may be behind; LSL keeps 10 s for it, and drops what is older
LAST_BINS = 10  # by which it is told how far behind a daemon was
RECONNECT_S = 3.0  # of bins that a subscriber may miss of a daemon that takes another one's place
STEP_BINS = 0.75  # that a bin may end too early or late after the one before
STATUS_S = 2.0  # between two statuses, of which one is due each second
LATENCY_BINS, LATENCY_EXACT = 8192, 0.006  # of how many a status tells the latency, and to which part of it
GROWTH_MB = 16.0
LATE_S = 3.5  # a spike is not later than this: what holds up sources and the daemon is over by then
LONG_S = 60.0  # from here on a daemon's memory and latency are compared between its thirds and halves
ABOUT_S = 1.0  # around a time
HELD_UP_S = 0.25  # a source or daemon of which nothing is seen for so long may be held up
NOTICED_S = 1.5  # within which a daemon knows that spikes have ended (`silence_s` is 1), or come again
RESET_BACK_S, RESET_AHEAD_S = 1.0, 60.0  # a stamp that is further off is a reset clock


Requests = list[tuple[float, float]]  # for an anchor: when each was sent, and when it had been answered


@dataclass
class Life:
    """A daemon from its start to its end, and what was heard of it.

    Attributes:
        since, until: which of the samples that were pushed fall into its time.
        anchor: how it was told to anchor its models; None for as their bundles say.
        ahead: how many bins its forecasts look ahead.
        told: how many had been pushed when it was told to end.
        killed: it had no time to say a last status.
        memory: (seconds, MB).
        dropped: how many good samples had been dropped when so many bins were published, by each status.
        offsets: of the source's clock, as the statuses told them.
        losses: how often its source was killed.
        asked: for anchors; another is sent only when the one before has been followed.
    """

    since: int
    until: int = -1
    told: int = -1
    anchor: str | None = None
    ahead: int = 1
    killed: bool = False
    frames: list[Latents] = field(default_factory=list)
    status: dict[str, Any] = field(default_factory=dict)
    memory: list[tuple[float, float]] = field(default_factory=list)
    dropped: list[tuple[int, int]] = field(default_factory=list)
    offsets: list[float] = field(default_factory=list)
    losses: int = 0
    asked: Requests = field(default_factory=list)

    def tell(self, status: dict[str, Any]) -> None:
        """Takes in a status."""
        self.status = status
        self.dropped.append((status["bins"], dropped(status)))
        self.offsets.append(status["stream"]["clock_offset_s"] or 0.0)

    @property
    def unread(self) -> int:
        """Samples that had arrived when a connection was lost, and were lost with it."""
        return int(self.status["stream"]["unread"])

    def gaps(self) -> np.ndarray:
        """Which of its bins are flagged as not observed."""
        return np.array([bool(frame.flags & Flags.GAP) for frame in self.frames])

    def delays(self) -> np.ndarray:
        return np.array([f.t_out - f.t_in for f in self.frames])


def dropped(status: dict[str, Any]) -> int:
    """Good spikes that are in no bin: too late, cut off by a gap, or lost with a connection before they were read."""
    return int(status["late"] + status["partial"] + status["stream"]["unread"])


class Check(abc.ABC):
    """Of one life. Subclasses know which samples make a bin.

    Args:
        life: the daemon.
        samples: all that were pushed, in order, with the `epoch`, the number, of the source that pushed them.
        rate: bins a second.
        toys: the models by the schema they were published with.
        problem: takes what is not as promised.

    Attributes:
        worst: the largest difference between a value and the reference.
        skipped: checks of the account of samples that were left out, since LSL may have dropped some.
    """

    def __init__(
        self, life: Life, samples: np.ndarray, rate: float, toys: dict[int, Toy], problem: Callable[[str], None]
    ) -> None:
        self.life, self.samples, self.rate, self.toys, self.problem = life, samples, rate, toys, problem
        self.frames, self.n_channels = life.frames, next(iter(toys.values())).n_channels
        self.counts = np.stack([frame.payload[: self.n_channels] for frame in self.frames])
        self.observed = ~life.gaps()
        self.here = slice(life.since, life.until)
        self.unseen = max(0, self.frames[0].bin - self.n_before)  # bins before S whole ones had come
        self.worst, self.skipped = 0.0, 0

    def run(self) -> None:
        self.check_order()
        self.check_swaps()
        self.check_times()
        self.check_clock()
        self.check_bins()
        self.check_values()
        self.check_status()
        self.check_resources()

    def check_order(self) -> None:
        frames = self.frames
        for name, values in (("seq", [f.seq for f in frames]), ("bin", [f.bin - frames[0].bin for f in frames])):
            if values != list(range(len(frames))):
                at = next(i for i, value in enumerate(values) if value != i)
                self.problem(f"{name} {values[at]} came {at}th")
        for f in frames:
            if bool(f.flags & Flags.LATE) != (f.t_out > f.t_bin + 1 / self.rate) or f.t_in > f.t_out:
                self.problem(f"bin {f.bin}: its times are wrong, or its late flag")
        if not self.life.killed:
            gaps, status = int((~self.observed).sum()), self.life.status
            if not gaps <= status["gaps"] <= gaps + self.unseen or status["bins"] != len(frames):
                self.problem(f"{gaps} gaps in {len(frames)} bins, the status says {status}")
        if self.counts[~self.observed].any():
            self.problem("a bin that is flagged a gap has counts")

    @abc.abstractmethod
    def offsets(self) -> np.ndarray:
        """All that the source's clock was taken to be off by."""

    def check_clock(self) -> None:
        """That it is off by no more than a clock can be measured: the worse, the more unevenly the daemon is woken."""
        uneven = np.abs(np.diff([frame.t_in for frame in self.frames]) - 1 / self.rate)
        off, possible = np.abs(self.offsets()).max(initial=0.0), NEAR_S + float(np.median(uneven))
        found = np.sort(self.offsets())[len(self.offsets()) // 2 :][:1]
        told = np.array(self.life.offsets)
        if told.size and found.size and np.abs(told - found).min() > EXACT_S:
            self.problem(f"the source's clock is taken to be off by {found[0]:.4f} s, the statuses say {told[-1]:.4f}")
        if off > possible:
            self.problem(
                f"the source's clock is taken to be off by {off:.4f} s, it cannot be by more than {possible:.4f}"
            )

    @abc.abstractmethod
    def check_bins(self) -> None:
        """That every bin is of its samples, and every sample in a bin or a counter."""

    @abc.abstractmethod
    def before(self) -> np.ndarray:
        """The bins `(S, C)` on which the model was anchored before it said anything; NaN where that is not known."""

    @property
    def n_before(self) -> int:
        return next(iter(self.toys.values())).n_anchor

    def unknown(self) -> np.ndarray:
        return np.full((self.n_before, self.n_channels), np.nan)

    def check_swaps(self) -> None:
        """Swapped is the first bin of each further schema, and no other."""
        ids = [f.schema_id for f in self.frames]
        told = [i for i, f in enumerate(self.frames) if f.flags & Flags.SWAPPED]
        if told != (true := [i for i in range(1, len(ids)) if ids[i] != ids[i - 1]]):
            self.problem(f"bins {told[:5]} are flagged as swapped, the model changed at {true[:5]}")

    def check_times(self) -> None:
        """Bins follow one another by a bin's width, gaps as well; the last one before a reset of the clock is a gap."""
        steps = np.diff([f.t_bin for f in self.frames])
        reset = (steps < -RESET_BACK_S) | (steps > RESET_AHEAD_S)
        # A source that comes back need not be in step with what it was: half a bin, and the jitter.
        for i in np.flatnonzero(~reset & (np.abs(steps * self.rate - 1) > STEP_BINS))[:1]:
            self.problem(f"bin {self.frames[i + 1].bin} ends {steps[i]:.4f} s after the one before")
        for i in np.flatnonzero(reset & self.observed[:-1])[:1]:
            self.problem(f"no gap between bin {self.frames[i].bin} and the clock's reset after it")

    @np.errstate(invalid="ignore")  # what is not known is NaN
    def check_values(self) -> None:
        """Each bin against the model in numpy, on what the bin itself is said to be, anchored when it had to be.

        What the lanes may be is more than one where values do not tell: of bins without spikes, or of unknown ones.
        """
        n, before, checked = self.n_before, self.before(), 0
        bins, whole = np.concatenate([before, self.counts]), np.concatenate([np.ones(n, bool), self.observed])
        possible: list[tuple[Lanes | None, Requests]] = [(None, self.life.asked)]
        for i, frame in enumerate(self.frames):
            window = bins[i : i + n] if whole[i : i + n].all() else None
            anchored = [some for lanes, asked in possible for some in self.anchorings(i, lanes, window, asked)]
            if not anchored:
                flagged = "" if frame.flags & Flags.ANCHORED else "not "
                self.problem(f"bin {frame.bin} (seq {frame.seq}) is {flagged}flagged as anchored: wrong by now")
                return
            possible, offs = [], []
            for before_it, asked in anchored:
                lanes, out = before_it.step(bins[i + n], float(whole[i + n]))
                out |= lanes.forecast(self.life.ahead)
                expected = np.concatenate([np.ravel(out[name]) for name in ARRAYS[1:]])
                offs.append(float(np.abs(frame.payload[self.n_channels :] - expected).max()))
                if not offs[-1] > TOLERANCE:
                    possible.append((lanes, asked))
            if not possible:
                self.problem(f"bin {frame.bin} (seq {frame.seq}) is not what the model gives: off by {min(offs):.2g}")
                return
            if not np.isnan(offs).any():
                checked, self.worst = checked + 1, max(self.worst, min(offs))
        if not checked:
            self.problem("no bin's value could be checked: the model was never anchored on known bins")

    def anchorings(
        self, i: int, lanes: Lanes | None, window: np.ndarray | None, asked: Requests
    ) -> list[tuple[Lanes, Requests]]:
        """What the lanes may be for the `i`th bin, and the requests then left; nothing where its flags cannot be right.

        It may be one of two only where a lane is due just as an anchor is asked for, which is of all lanes or too late.
        """
        frame, toy = self.frames[i], self.toys[self.frames[i].schema_id]
        if lanes is None or frame.flags & Flags.SWAPPED:
            flagged = window is not None and frame.flags & Flags.ANCHORED
            left = [request for request in asked if request[0] > frame.t_out]
            return [(Lanes.anchored(toy, window, self.life.anchor), left)] if flagged else []
        perhaps = bool(asked) and asked[0][0] < frame.t_out
        surely = perhaps and asked[0][1] < self.frames[i - 1].t_out
        due = lanes.due is not None
        if not frame.flags & Flags.ANCHORED:
            return [] if window is not None and (due or surely) else [(lanes, asked)]
        if window is None:
            return []
        all_of_them = [(Lanes.anchored(toy, window, self.life.anchor), asked[1:])] if perhaps else []
        one_of_them = [(lanes.with_turn_taken(window), asked)] if due and not surely else []
        return all_of_them + one_of_them

    def check_status(self) -> None:
        """That one came each second, and that the last one tells what was seen."""
        steps = np.minimum(np.diff([f.t_out for f in self.frames]), AWAKE_S)  # it may have been stopped meanwhile
        for before, after in itertools.pairwise(bins for bins, _ in self.life.dropped):
            if (seconds := steps[before : max(before, after - 1)].sum()) > STATUS_S:
                self.problem(f"no status came between bins {before} and {after}, for {seconds:.1f} s")
                break
        if self.life.killed:
            return
        status, last = self.life.status, np.sort(self.life.delays()[-LATENCY_BINS:])
        found = {"run": status["run"], "bundle": status["bundle"]}
        true = {"run": self.frames[-1].run, "bundle": self.toys[self.frames[-1].schema_id].name}
        if found != true:
            self.problem(f"the last status says {found}, what was seen is {true}")
        for name, share in (("p50", 0.5), ("max", 1.0)):
            seen, said = 1e6 * float(last[int(share * (len(last) - 1))]), status["latency_us"][name]
            if abs(said - seen) > 1 + LATENCY_EXACT * seen:
                self.problem(f"the last status says {said} us for the latency's {name}, what was seen is {seen:.1f}")
        anchored, swaps = (sum(bool(f.flags & flag) for f in self.frames) for flag in (Flags.ANCHORED, Flags.SWAPPED))
        # One after the last bin is not seen, nor one of a model that is left after the same bin.
        if not anchored <= status["anchors"] <= anchored + swaps + 1:
            self.problem(f"{anchored} bins are flagged as anchored, the status says {status['anchors']} anchors")
        if status["stream"]["losses"] < self.life.losses:
            self.problem(f"{self.life.losses} sources were killed, the status says {status['stream']}")

    def check_resources(self) -> None:
        """The last third against the one before it, where everything had been loaded once."""
        memory = self.life.memory
        if not memory or memory[-1][0] - memory[0][0] < LONG_S:
            return
        megabytes = np.array([mb for _, mb in memory])
        third = len(megabytes) // 3
        growth = float(megabytes[-third:].max() - megabytes[-2 * third : -third].max())
        if growth > GROWTH_MB:
            self.problem(f"the daemon's memory grew by {growth:.1f} MB in the last third")
        before, after = (np.percentile(part, 50) for part in np.array_split(self.life.delays(), 2))
        if after > 3 * before + 1e-3:
            self.problem(f"latency grew from {1e6 * before:.0f} to {1e6 * after:.0f} us")

    def check_counters(self, expected: dict[str, tuple[int, int]]) -> None:
        """Each counter between two numbers."""
        if self.life.killed:
            return
        found = {name: self.life.status[name] for name in expected}
        if not all(least <= found[name] <= most for name, (least, most) in expected.items()):
            self.problem(f"the counters are {found}, but what was pushed comes to {expected}")

    def steps(self, stamps: np.ndarray) -> tuple[int, int]:
        """How often a clock was set back, and ahead."""
        steps = np.diff(stamps)
        return int((steps < -RESET_BACK_S).sum()), int((steps > RESET_AHEAD_S).sum())


class RegularCheck(Check):
    """Of counts (k = 1) or samples (k to a bin)."""

    def __init__(self, k: int, *args: Any) -> None:
        self.k = k
        super().__init__(*args)

    @cached_property
    def slots(self) -> np.ndarray:
        """The samples that take a place on the grid, good or not."""
        return self.life.since + np.flatnonzero(self.samples["kind"][self.here] <= HUGE)

    @cached_property
    def located(self) -> tuple[np.ndarray, np.ndarray]:
        """At which of the slots each observed bin ends, -1 where there is none, and the clock's offset there.

        A bin has its last sample's stamp, moved by the offset, to the last digit. That stays for seconds.
        """
        stamps = self.samples["stamp"][self.slots]
        times = np.array([frame.t_bin for frame in itertools.compress(self.frames, self.observed)])
        found, offsets, at = np.full(len(times), -1), np.zeros(len(times)), 0
        offset = 0.0
        for i, time in enumerate(times):
            coming = stamps[at : at + 100_000]
            if not (same := np.flatnonzero(np.abs(coming + offset - time) < EXACT_S)).size:
                offset = _offset(coming, times[i : i + FOLLOWING], offset)
                same = np.flatnonzero(np.abs(coming + offset - time) < EXACT_S)
            if same.size:
                found[i] = at + same[0]  # the first: a clock that was set back comes to the same time again
                at = found[i] + 1
            offsets[i] = offset
        return found, offsets

    @cached_property
    def looked(self) -> np.ndarray:
        """When each observed bin was in the daemon's hands."""
        return np.array([frame.t_in for frame in itertools.compress(self.frames, self.observed)])

    @property
    def last_slots(self) -> np.ndarray:
        return self.located[0]

    def offsets(self) -> np.ndarray:
        return self.located[1]

    @property
    def first_slot(self) -> int:
        """Where the first observed bin begins."""
        return max(0, int(self.last_slots[0]) - self.k + 1)

    def check_bins(self) -> None:
        k, samples, slots = self.k, self.samples, self.slots
        binned, previous = np.zeros(len(samples), bool), -1
        for frame, last in zip(itertools.compress(self.frames, self.observed), self.last_slots, strict=True):
            own = slots[max(0, last - k + 1) : last + 1]
            if last < 0 or last - k < previous or (samples["kind"][own] != GOOD).any():
                self.problem(f"bin {frame.bin} is flagged as observed, but {k} good samples were not pushed for it")
                return
            if not np.array_equal(samples["x"][own].sum(axis=0), frame.payload[: self.n_channels]):
                self.problem(f"bin {frame.bin} is not the sum of its {k} samples")
                return
            binned[own], previous = True, last
        # The first bins are not published, and gaps that follow them may come before the first one that was observed.
        unseen = self.n_before + int(np.argmax(self.observed))
        binned[slots[max(0, self.first_slot - k * unseen) : self.first_slot]] = True
        arrived, partial = np.zeros(len(samples), bool), np.zeros(2, int)
        for epoch in np.unique(samples["epoch"][self.here]):
            partial += self.check_epoch(epoch, binned, arrived)
        kinds = samples["kind"][arrived]
        counted = {"nan": NAN, "overflow": HUGE, "duplicates": DUPLICATE, "late": BACKWARD}
        expected = {name: (int((kinds == kind).sum()),) * 2 for name, kind in counted.items()}
        stamps = samples["stamp"][arrived]
        back, ahead = self.steps(stamps[kinds <= HUGE])
        if self.overrun:
            self.skipped += not self.life.killed  # which has no counters to check
        else:
            self.check_counters(expected | {"resets": (back + ahead,) * 2, "partial": tuple(partial)})
        set_back = int((np.diff([f.t_bin for f in self.frames]) <= 0).sum())
        if set_back != back:
            self.problem(f"time went back {set_back} times in the bins, {back} times in the samples")

    def check_epoch(self, epoch: int, binned: np.ndarray, arrived: np.ndarray) -> tuple[int, int]:
        """That no sample of a source was lost between the first and the last that arrived.

        Those that did are marked as `arrived`. Returns between how many and how many good ones are in bins that lack
        others.
        """
        samples = self.samples
        there = self.life.since + np.flatnonzero(samples["epoch"][self.here] == epoch)
        used = there[binned[there]]
        if not len(used):
            return 0, len(there)
        amid = there[(there >= used[0]) & (there <= used[-1])]
        unseen = 0 if arrived.any() else self.unseen
        arrived[amid] = True
        good = samples["kind"][there] == GOOD
        partial = amid[(samples["kind"][amid] == GOOD) & ~binned[amid]]
        early = there[(there < used[0]) & samples["heard"][there] & ~self.of_the_dead[there] & good]
        after = there[(there > used[-1]) & (there < self.life.told) & good]
        end = samples["pushed"][min(there[-1], self.life.told - 1)] - IN_FLIGHT_S - self.behind(used[-1])
        for name, some, allowed in (
            ("amid", self.unexcused(partial), 0),
            ("before", early, self.k * (1 + unseen)),
            ("after", after[samples["pushed"][after] < end], self.life.unread),
        ):
            if len(some) > allowed:
                around = samples[["stamp", "kind"]][max(0, some[0] - 3) : some[0] + 4].tolist()
                self.problem(
                    f"{len(some)} samples of source {epoch} are lost {name} those that arrived: {some[:5]} {around}"
                )
        return len(partial), len(partial) + len(early) + len(after)

    @cached_property
    def of_the_dead(self) -> np.ndarray:
        """Samples that were pushed to a daemon that had just been killed, as its source did not know yet."""
        since, samples = self.life.since, self.samples
        own = samples["epoch"] == samples["epoch"][since - 1] if since else np.zeros(len(samples), bool)
        still = np.append((samples["heard"] & own)[since:], False)
        return np.arange(len(samples)) < since + int(np.argmin(still))

    def behind(self, used: int) -> float:
        """How long samples took to the daemon until the last one that it used, seconds."""
        ends = self.slots[self.last_slots]
        of = np.flatnonzero(ends <= used)[-LAST_BINS:]
        return float((self.looked[of] - self.samples["pushed"][ends[of]]).max(initial=0.0))

    @cached_property
    def overrun(self) -> bool:
        """Whether the daemon was ever so far behind that LSL may have dropped samples, of which it tells nobody."""
        some = self.last_slots >= 0
        age = self.looked[some] - self.samples["pushed"][self.slots[self.last_slots[some]]]
        return bool(age.max(initial=0.0) > KEPT_S)

    def unexcused(self, partial: np.ndarray) -> np.ndarray:
        """Good samples in no bin that are too many for the gaps about them: each gap lacks a sample at least.

        But of a daemon that is so far behind that LSL has dropped some.
        """
        if self.overrun:
            self.skipped += 1
            return partial[:0]
        ends = self.slots[self.last_slots]  # of the observed bins
        after = np.searchsorted(ends, partial)  # the observed bin that follows each of the samples
        n_gaps = np.diff(np.flatnonzero(self.observed), prepend=-1) - 1  # before each observed bin
        n_samples = np.bincount(after, minlength=len(ends))
        return partial[(n_samples > n_gaps * (self.k - 1))[after]]

    def before(self) -> np.ndarray:
        if not self.observed[0] or self.last_slots[0] < 0:
            return self.unknown()
        own = self.slots[max(0, self.first_slot - self.k * self.n_before) : self.first_slot]
        if len(own) < self.k * self.n_before:
            return self.unknown()
        return self.samples["x"][own].reshape(self.n_before, self.k, -1).sum(axis=1)


class EventsCheck(Check):
    """Of spikes: a bin has those of its time, but where they came too late, which is counted."""

    def check_bins(self) -> None:
        self.check_gaps()
        samples, sure = self.samples[self.here], self.surely_heard()
        late, good = samples["kind"] == BACKWARD, samples["kind"] == GOOD
        heard = samples["heard"] | np.append(samples["heard"][1:], False)  # by who connects just now, perhaps
        clock = good & heard
        runs, parts = list(_runs(np.array([f.t_bin for f in self.frames]))), list(_runs(samples["stamp"][clock]))
        missing = 0
        for bins, part in zip(runs, parts, strict=False):
            own = np.flatnonzero(clock)[part]
            missing += self.check_run(bins, samples[own], sure[own])
            between = samples[own[0] : own[-1]]
            self.check_unheard(bins, between["stamp"][(good & ~heard)[own[0] : own[-1]]])
        outside = self.unpublished(samples["stamp"][clock], parts)
        back, ahead = self.steps(samples["stamp"][clock])
        if len(runs) > 1 + back + ahead:
            self.problem(f"the bins' time jumps more often than the clock was reset, {back + ahead} times")
        bad = {name: int((samples["kind"] == kind).sum()) for name, kind in (("nan", NAN), ("overflow", HUGE))}
        self.check_counters(
            {name: (n - min(n, self.life.unread), n) for name, n in bad.items()}
            | {"resets": (back + ahead,) * 2, "duplicates": (0, 0)}
        )
        if self.life.killed:
            return
        lost = dropped(self.life.status)
        if missing > (explained := lost - int((late & sure).sum())):
            self.problem(f"{missing} spikes are missing in the bins of their time, counters explain {explained}")
        told, least, most = (
            int(self.counts.sum()) + lost,
            int(((good | late) & sure).sum()),
            int((good | late).sum()) + min(self.life.unread, int((~(good | late)).sum())),
        )
        if not least - outside <= told <= most:
            self.problem(f"{told} spikes are in bins or counters, pushed were {least} to {most}")

    def check_gaps(self) -> None:
        """Bins are gaps while nothing comes, and no others: by when they were decided on, which no reset moves."""
        out = np.array([frame.t_in for frame in self.frames])
        held_up = np.flatnonzero(np.diff(out) > HELD_UP_S)
        stalls = list(zip(out[held_up], out[held_up + 1], strict=True))
        silent, disturbed = np.zeros((2, len(out)), bool)
        for begin, end in self.silences(NOTICED_S):
            # What a source pushed last may come when it is no longer held up, just before what it pushes next.
            if not any(stall < begin + NOTICED_S and begin < after for stall, after in stalls):
                silent |= (out > begin + NOTICED_S) & (out < end - 2 * HELD_UP_S)
        for begin, end in [*self.silences(HELD_UP_S), *stalls]:
            disturbed |= (out >= begin) & (out <= end + NOTICED_S)
        disturbed[:-1] |= np.abs(np.diff([frame.t_bin for frame in self.frames])) > RESET_BACK_S
        for i in np.flatnonzero(silent & self.observed)[:1]:
            self.problem(f"bin {self.frames[i].bin} is no gap, though no spikes came for {NOTICED_S} s")
        for i in np.flatnonzero(~disturbed & ~self.observed)[:1]:
            self.problem(f"bin {self.frames[i].bin} is a gap, though spikes came all the time")

    def silences(self, longest: float) -> list[tuple[float, float]]:
        """From a push that was heard to the next, where that is longer, or another source's, or some were not heard."""
        samples = self.samples[self.here]
        heard = np.flatnonzero(samples["heard"])
        pushed, epoch = samples["pushed"][heard], samples["epoch"][heard]
        apart = (np.diff(pushed) > longest) | (np.diff(epoch) != 0) | (np.diff(heard) > 1)
        begin, end = [-np.inf, *pushed[:-1][apart], pushed[-1]], [pushed[0], *pushed[1:][apart], np.inf]
        return list(zip(begin, end, strict=True))

    def surely_heard(self) -> np.ndarray:
        """Those that cannot have been lost with a connection that began or broke."""
        samples = self.samples[self.here]
        sure = samples["heard"].copy()
        sure[1:] &= samples["heard"][:-1]
        ends = [*(np.flatnonzero(np.diff(samples["epoch"])) + 1), self.life.told - self.life.since]
        begins = [0, *ends[:-1]]
        for begin, end in zip(begins, ends, strict=True):
            broke = samples["pushed"][end - 1]
            sure[begin:end] &= samples["pushed"][begin:end] < broke - IN_FLIGHT_S - self.held_up(broke)
        sure[ends[-1] :] = False
        return sure

    def held_up(self, when: float) -> float:
        """For how long the daemon looked at nothing, at most, about a time."""
        came = np.array([frame.t_in for frame in self.frames])
        about = came[np.abs(came - when) < ABOUT_S]
        return float(np.diff(about).max(initial=0.0))

    def offsets(self) -> np.ndarray:
        return np.array(self.life.offsets)

    @cached_property
    def near(self) -> float:
        """Between a spike and a bin's edge, where it may be in this bin or that."""
        return NEAR_S + float(np.abs(self.offsets()).max(initial=0.0))

    def unpublished(self, stamps: np.ndarray, parts: list[slice]) -> int:
        """Spikes before the first bin that was published, or after the last."""
        first, last = self.frames[0].t_bin - 1 / self.rate, self.frames[-1].t_bin
        return int((stamps[parts[0]] < first + self.near).sum() + (stamps[parts[-1]] > last - self.near).sum())

    def check_run(self, bins: slice, spikes: np.ndarray, sure: np.ndarray) -> int:
        """Of bins between two resets of the clock: how many spikes they lack."""
        frames, counts = self.frames[bins], self.counts[bins]
        ends = np.array([f.t_bin for f in frames])
        if not np.allclose(np.diff(ends), 1 / self.rate, atol=1e-6):
            self.problem(f"bins {frames[0].bin} to {frames[-1].bin} do not follow one another by a bin's width")
        surely, maybe = self.counted(spikes, sure, ends)
        undisturbed = self.undisturbed()[bins, None]
        for i in np.flatnonzero(((counts > maybe) | (undisturbed & (counts < surely))).any(axis=1))[:1]:
            drops = [drop for drop in self.life.dropped if abs(drop[0] - bins.start - i) < 2 * LATE_S * self.rate]
            self.problem(
                f"bin {frames[i].bin} ({bins.start + i}th) has {counts[i]}, but pushed were {surely[i]} to {maybe[i]}; "
                f"dropped about then, after so many bins: {drops}"
            )
        return int(np.maximum(surely - counts, 0).sum())

    def check_unheard(self, bins: slice, stamps: np.ndarray) -> None:
        """A bin is a gap where spikes of it were pushed while nobody was connected: before a connection, mostly."""
        ends = np.array([frame.t_bin for frame in self.frames[bins]])
        low, high = self.around(stamps, ends)
        of = low[(low == high) & (low >= 0) & (low < len(ends))]
        for i in of[self.observed[bins][of]][:1]:
            self.problem(f"bin {self.frames[bins][i].bin} is no gap, though spikes of it were pushed to nobody")

    def undisturbed(self) -> np.ndarray:
        """Bins about which no spike was dropped, nor for some time after.

        Many that are decided on at once are published one by one, by statuses that know of all of them already.
        """
        bins, dropped = np.array([(0, 0), *self.life.dropped]).T
        came = np.array([frame.t_in for frame in self.frames])
        of, at_once = np.arange(len(came)), np.searchsorted(came, came)
        after = np.searchsorted(bins, of + LATE_S * self.rate)
        before = np.searchsorted(bins, at_once, "right") - 1
        return (after < len(bins)) & (dropped[before] == dropped[np.minimum(after, len(bins) - 1)])

    def counted(self, spikes: np.ndarray, sure: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Spikes by bin and channel: those that are in it surely, and those that may be, at an edge or perhaps lost."""
        begin, channels = ends[0] - 1 / self.rate, spikes["x"][:, 0].astype(int)
        low, high = (
            np.floor((spikes["stamp"] - begin + off) * self.rate).astype(int) for off in (-self.near, self.near)
        )

        def table(bins: np.ndarray, some: np.ndarray) -> np.ndarray:
            counts, some = np.zeros((len(ends), self.n_channels), int), some & (bins >= 0) & (bins < len(ends))
            np.add.at(counts, (bins[some], channels[some]), 1)
            return counts

        edge = low < high
        return table(low, sure & ~edge), table(low, np.ones_like(edge)) + table(high, edge)

    def around(self, stamps: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """In which bin a spike is: one, or one of two at an edge."""
        low, high = (np.floor((stamps - ends[0] + off) * self.rate + 1).astype(int) for off in (-self.near, self.near))
        return low, high

    def before(self) -> np.ndarray:
        """Not known: a spike at a bin's edge is in this one or that by the daemon's clock."""
        return self.unknown()


def _offset(stamps: np.ndarray, times: np.ndarray, before: float) -> float:
    """By how much some bins' times are off their samples' stamps, most by the same; `before` where they are not."""
    some = np.sort(stamps[(stamps > times.min() - 2 * CLOCK_S) & (stamps < times.max() + 2 * CLOCK_S)])
    possible = times[0] - some[np.abs(times[0] - some) < CLOCK_S]
    if not possible.size:
        return before
    wanted = times - possible[:, None]
    n = (np.searchsorted(some, wanted + EXACT_S) > np.searchsorted(some, wanted - EXACT_S)).sum(axis=1)
    return float(possible[np.argmax(n)]) if 2 * n.max() > len(times) else before


def _runs(times: np.ndarray) -> Iterator[slice]:
    """Parts of times between which a clock was reset."""
    steps = np.diff(times)
    edges = [0, *(np.flatnonzero((steps < -RESET_BACK_S) | (steps > RESET_AHEAD_S)) + 1), len(times)]
    return (slice(int(a), int(b)) for a, b in itertools.pairwise(edges))


def check_listener(lives: list[Life], heard: Path, rate: float, problem: Callable[[str], None]) -> None:
    """That the subscriber that is stopped at times has all bins, but around the death of a daemon."""
    lines = (json.loads(line) for line in heard.read_text().splitlines() if line.startswith("{"))
    parts = list(_rising(line["seq"] for line in lines))
    if len(parts) != len(lives):
        problem(f"the subscriber that was stopped at times heard {len(parts)} daemons, there were {len(lives)}")
        return
    for i, (life, seqs) in enumerate(zip(lives, parts, strict=True)):
        missed_first = seqs[0] if i else 0
        missed_last = len(life.frames) - 1 - seqs[-1]
        whole = seqs == list(range(seqs[0], seqs[-1] + 1))
        if not whole or missed_first > RECONNECT_S * rate or abs(missed_last) > IN_FLIGHT_S * rate * life.killed:
            problem(f"the subscriber that was stopped at times has {len(seqs)} of {len(life.frames)} bins")


def _rising(numbers: Iterable[int]) -> Iterator[list[int]]:
    """Parts in which each is above the one before."""
    part: list[int] = []
    for number in numbers:
        if part and number <= part[-1]:
            yield part
            part = []
        part.append(number)
    if part:
        yield part


def read_logs(logs: Iterable[Path], kind: np.dtype) -> np.ndarray:
    """All that was pushed, in order, with the number of the source that pushed it."""
    found = []
    for epoch, log in enumerate(logs):
        records = np.frombuffer(whole_records(log, kind), kind)
        found.append(np.zeros(len(records), [*((n, *kind.fields[n][:1]) for n in kind.names), ("epoch", "i4")]))
        for name in kind.names:
            found[-1][name] = records[name]
        found[-1]["epoch"] = epoch
    return np.concatenate(found)


def whole_records(log: Path, kind: np.dtype) -> bytes:
    """What a source has written, but for a record that it was killed in."""
    content = b""
    with contextlib.suppress(FileNotFoundError):
        content = log.read_bytes()
    return content[: len(content) // kind.itemsize * kind.itemsize]
