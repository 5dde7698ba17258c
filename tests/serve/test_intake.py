"""What the daemon takes from a real stream of each kind, and the bins that come of it."""

import os
import re
from types import SimpleNamespace

import numpy as np
import pylsl
import pytest
from lsl_source import LslSource
from station import until

from rtdsae.serve import intake as intakes
from rtdsae.serve.search import find
from rtdsae.serve.source import MAX_PULL, Source, Wanted

C, WIDTH = 4, 0.02
WANTED = Wanted(tuple(f"ch{i}" for i in range(C)), WIDTH)


def bins_of(stream, n_bins, **options):
    """So many bins of a stream, by the daemon's own loop: counts, observed, ends, and when each was in hand."""
    source = Source(find(f"source_id={stream.source_id}", 20), WANTED)
    intake = intakes.make(source.kind, source.samples_per_bin, C, WIDTH, **options)
    counts, observed, ends, times, deadline = [], [], [], [], pylsl.local_clock() + 30
    while len(counts) < n_bins:
        assert pylsl.local_clock() < deadline
        if intake.pull(source):
            bins = intake.bins(source)
            counts += bins.counts.tolist()
            observed += bins.observed.tolist()
            ends += bins.t_end.tolist()
            times += [pylsl.local_clock()] * len(bins.index)
    source.close()
    return np.array(counts), np.array(observed), np.array(ends), np.array(times), intake.counters


@pytest.mark.parametrize("rate", [500.0, 1000.0])
@pytest.mark.parametrize("reduce", ["sum", "mean"])
def test_samples_are_added_up_or_averaged(rate, reduce):
    k = round(rate * WIDTH)
    samples = np.random.default_rng(0).poisson(2.0, (20 * k, C)).astype(np.float32)
    with LslSource(samples, rate) as stream:
        counts, observed, *_ = bins_of(stream, 20, reduce=reduce)
    expected = getattr(samples.reshape(20, k, C), reduce)(axis=1)
    np.testing.assert_allclose(counts, expected, rtol=1e-6)
    assert observed.all()


def test_thousands_of_samples_a_second_in_short_bins():
    rate, width = 30_000.0, 0.01
    samples = (np.random.default_rng(0).random((12_000, C)) < 0.01).astype(np.float32)
    with LslSource(samples, rate, chunk=30) as stream:
        source = Source(find(f"source_id={stream.source_id}", 20), Wanted(WANTED.channels, width))
        assert (source.kind, source.samples_per_bin) == ("samples", 300)
        intake = intakes.make(source.kind, source.samples_per_bin, C, width)
        counts, deadline = [], pylsl.local_clock() + 30
        while len(counts) < 40:
            assert pylsl.local_clock() < deadline
            if intake.pull(source):
                counts += intake.bins(source).counts.tolist()
        source.close()
    np.testing.assert_array_equal(counts, samples.reshape(40, 300, C).sum(axis=1))


def test_samples_that_are_taken_before_their_bin_is_complete_end_in_it(monkeypatch):
    k, n_bins, rng = 20, 40, np.random.default_rng(0)
    samples = rng.poisson(2.0, (n_bins * k, C)).astype(np.float32)
    with LslSource(samples, k / WIDTH, pace=1e7) as stream:
        source = Source(find(f"source_id={stream.source_id}", 20), WANTED)
        stream.wait_pushed()
        until(lambda: source.available() == len(samples))
        intake, counts, early, left, pull = intakes.make("samples", k, C, WIDTH), [], [], len(samples), source.pull
        while left:
            if come := int(rng.integers(0, min(k + 5, left + 1))):
                monkeypatch.setattr(source, "pull", lambda n, timeout_s, come=come: pull(min(n, come), timeout_s))
                assert intake.pull_early(source)
                early.append(source.n_taken)
                left -= source.n_taken
                counts += intake.bins(source).counts.tolist()
            monkeypatch.setattr(source, "pull", pull)
            if left and rng.random() < 0.7:
                assert intake.pull(source)
                left -= source.n_taken
                counts += intake.bins(source).counts.tolist()
        assert not intake.pull_early(source)
        source.close()
    np.testing.assert_array_equal(counts, samples.reshape(n_bins, k, C).sum(axis=1))
    assert {1, k} <= set(early) <= set(range(1, k + 1))


def spikes(n_bins, rate=1.5, seed=0):
    """Spikes `(n, 1)` and their times in order, with a spike at 0; and the bins that they make."""
    rng = np.random.default_rng(seed)
    times = np.concatenate([[0.0], np.sort(rng.uniform(0, n_bins * WIDTH, rng.poisson(rate * n_bins)))])
    channels = rng.integers(0, C, len(times))
    counts = np.zeros((n_bins, C))
    np.add.at(counts, (np.minimum((times / WIDTH).astype(int), n_bins - 1), channels), 1)
    return channels[:, None].astype(np.float32), times, counts


def test_events_make_bins_by_the_clock_those_without_spikes_too():
    samples, times, expected = spikes(60, rate=0.7)
    with LslSource(samples, 0.0, offsets=times, on_time=True) as stream:
        counts, observed, ends, came, counters = bins_of(stream, 60)
    off = counts[:60] - expected
    assert observed[:60].all()
    assert counters.late + off.sum() == 0  # every spike is in a bin or counted late, which a busy machine may cause
    assert np.abs(off).sum() <= 2 * counters.late
    np.testing.assert_allclose(np.diff(ends), WIDTH, atol=1e-6)
    assert (came[:60] >= ends[:60] + 0.002 - 1e-4).all()  # never before the allowance for late spikes is over
    assert (expected.sum(axis=1) == 0).sum() > 5


def test_spikes_that_are_taken_before_their_bin_is_due_end_in_it():
    n_bins, per_bin = 6, 12
    width = per_bin * WIDTH
    samples, times, expected = spikes(n_bins * per_bin, rate=4.0)
    with LslSource(samples, 0.0, offsets=times, on_time=True) as stream:
        source = Source(find(f"source_id={stream.source_id}", 20), Wanted(WANTED.channels, width))
        intake, counts, early, deadline = intakes.make("events", 0, C, width), [], 0, pylsl.local_clock() + 30
        until(lambda: intake.pull_early(source))
        counts += intake.bins(source).counts.tolist()
        while len(counts) < n_bins:
            assert pylsl.local_clock() < deadline
            until(lambda: source.available() or not intake.idle(source))
            if intake.idle(source) and intake.pull_early(source):
                early += source.n_taken
            elif not intake.pull(source):
                continue
            counts += intake.bins(source).counts.tolist()
        source.close()
    off = np.array(counts[:n_bins]) - expected.reshape(n_bins, per_bin, C).sum(axis=1)
    assert intake.counters.late + off.sum() == 0
    assert np.abs(off).sum() <= 2 * intake.counters.late  # which a busy machine may cause
    assert early


@pytest.mark.parametrize(("width", "said"), [(0.001, True), (0.002, True), (0.004, False)])
def test_bins_shorter_than_the_allowance_for_late_spikes_are_said_to_be_late(caplog, width, said):
    intakes.make("events", 0, C, width)
    assert ("lateness_s=0.002" in caplog.text) == said


def test_more_spikes_a_bin_than_one_pull_takes():
    """From a daemon that rests, and once is away for so long that bins are due whose spikes wait to be taken."""
    width, per_bin, chunk, n_bins = 0.2, 6000, 300, 14
    number = np.arange(per_bin * n_bins + chunk) // chunk
    offsets = np.where(number > 0, (number + 0.5) * width * chunk / per_bin, 0.0)
    intake, counts, been_away = intakes.make("events", 0, C, width, lateness_s=0.5), [], False
    with LslSource(np.zeros((len(number), 1)), 0.0, offsets=offsets, chunk=chunk, on_time=True) as stream:
        source = Source(find(f"source_id={stream.source_id}", 20), Wanted(WANTED.channels, width))
        deadline = pylsl.local_clock() + 30
        while len(counts) < n_bins:
            assert pylsl.local_clock() < deadline
            if len(counts) >= 2 and not been_away:
                until(lambda: source.available() > 8 * MAX_PULL)
                been_away = True
            until(lambda: not intake.idle(source))
            if intake.pull(source):
                counts += intake.bins(source).counts[:, 0].tolist()
        source.close()
    assert counts[:n_bins] == [per_bin] * n_bins
    assert intake.counters.late == 0


def test_as_many_spikes_waiting_as_lsl_keeps_are_said_once(caplog):
    """LSL drops the oldest, and says nothing."""
    samples, offsets = np.zeros((130_000, 1), np.float32), np.arange(130_000) / 100_000
    intake = intakes.make("events", 0, C, 0.5)
    with LslSource(samples, 0.0, offsets=offsets, chunk=1000, pace=1e7) as stream:
        source = Source(find(f"source_id={stream.source_id}", 20), WANTED)
        stream.wait_pushed()
        until(lambda: source.available() >= source.kept)
        while intake.pull(source):
            intake.bins(source)
            if source.n_taken < MAX_PULL:
                break
        source.close()
    said = [record.message for record in caplog.records if "as many as LSL keeps" in record.message]
    assert len(said) == 1
    assert re.match(rf"stream {stream.source_id}: 1\d{{5}} spikes waited", said[0])


def test_spikes_that_are_taken_as_they_come_are_no_backlog(caplog):
    intake, source = intakes.make("events", 0, C, WIDTH), SimpleNamespace(kept=2 * MAX_PULL, source_id="array")
    for taken in [MAX_PULL, 100] * 3:
        intake._heed_backlog(source, taken)
    assert not caplog.records


def test_a_silent_stream_of_events_gives_gaps():
    samples, times, _ = spikes(5)
    with LslSource(samples, 0.0, offsets=times, on_time=True) as stream:
        _, observed, *_ = bins_of(stream, 40, silence_s=0.3)
    assert observed[:5].all()
    assert not observed[25:].any()
    assert (np.diff(observed.astype(int)) <= 0).all()


def test_events_go_on_as_gaps_while_there_is_no_stream():
    intake = intakes.make("events", 0, C, WIDTH)
    assert len(intake.without_stream().index) == 0
    intake._binner.push(np.array([1.0]), np.array([pylsl.local_clock()]))
    observed = []
    while len(observed) < 5:
        observed += intake.without_stream().observed.tolist()
    assert not any(observed)


def test_the_bin_in_which_a_stream_of_events_comes_back_is_not_observed():
    """Its beginning is not known; so long as the stream was not silent for long, the next one is."""
    width, samples, offsets = 0.5, np.zeros((400, 1), np.float32), np.arange(400) / 100
    intake, name = intakes.make("events", 0, C, width), f"back-{os.getpid()}"
    index, observed, deadline = [], [], pylsl.local_clock() + 30

    def take(bins):
        index.extend(bins.index.tolist())
        observed.extend(bins.observed.tolist())

    def run(done):
        while not done():
            assert pylsl.local_clock() < deadline
            if intake.pull(source):
                take(intake.bins(source))

    with LslSource(samples, 0.0, offsets=offsets, on_time=True, source_id=name) as stream:
        source = Source(find(f"source_id={name}", 20), Wanted(WANTED.channels, width))
        run(lambda: len(index) >= 2)
    source.close()
    gone = len(index)
    with LslSource(samples, 0.0, offsets=offsets, on_time=True, source_id=name) as stream:
        found = find(f"source_id={stream.source_id}", 20)
        while len(index) < gone + 1:
            take(intake.without_stream())
        source = Source(found, Wanted(WANTED.channels, width), 0.0)
        back, since = len(index), pylsl.local_clock()
        until(lambda: source.available() > 0)  # so that there are some in the bin of the first pull
        waited = (pylsl.local_clock() - since) / width
        run(lambda: observed[back:].count(True) >= 2)
    source.close()
    assert index == list(range(len(index)))
    seen = observed.index(True, gone)
    assert back < seen <= back + 2 + waited
    assert observed == [True] * gone + [False] * (seen - gone) + [True] * (len(index) - seen)
    assert intake.counters.partial > 0


def test_a_regular_stream_that_is_away_completes_nothing():
    assert len(intakes.make("samples", 4, C, WIDTH).without_stream().index) == 0
