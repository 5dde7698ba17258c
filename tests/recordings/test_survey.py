"""The survey: nothing to say of good neurons, and each fault found where it was put."""

import dataclasses
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import poisson

from rtdsae.recordings import Recording, checks, synthetic
from rtdsae.recordings.reaching import reaching
from rtdsae.recordings.survey import survey

W = 0.02
T, C = 6000, 20


def rates(seed=0):
    """Rates that rise and fall together, in spikes a bin: neurons with something in common."""
    rng = np.random.default_rng(seed)
    drive = np.convolve(rng.normal(size=T + 50), np.hanning(50), "same")[:T]
    return 0.2 * np.exp(0.5 * np.outer(drive / drive.std(), rng.normal(size=C)))


def good(seed=0, **parts):
    counts = np.random.default_rng(seed + 100).poisson(rates(seed)).astype(np.uint8)
    return Recording(counts=counts, bin_width_s=W, **parts)


def changed(change, **parts):
    """Good neurons after `change(counts)`, which works in place or gives others."""
    counts = good().counts.copy()
    other = change(counts)
    return replace(good(**parts), counts=counts if other is None else other)


def warned(recording):
    return survey(recording).warnings


@pytest.mark.parametrize(
    "recording",
    [
        good,
        lambda: good(3),
        lambda: synthetic.lorenz(seconds=120),
        lambda: synthetic.chaotic_rnn(n_conditions=20),
        reaching,
    ],
)
def test_of_good_neurons_there_is_nothing_to_say(recording):
    assert warned(recording()) == ()


def put_spikes_at_once(counts):
    counts[[700, 2500]] = 3


def smooth(counts):
    kernel = np.hanning(9) / np.hanning(9).sum()
    return np.stack([np.convolve(column, kernel, "same") for column in counts.T], axis=1)


def set_column(column, values):
    def change(counts):
        counts[:, column] = values(counts)

    return change


def share(counts):
    common = np.random.default_rng(5).random(T) < 0.1
    counts[common, 3] += 1
    counts[common, 8] += 1


def silence(first, last, *columns):
    def change(counts):
        counts[first:last, list(columns) or slice(None)] = 0

    return change


def grow(counts):
    counts[T // 2 :] += np.random.default_rng(6).poisson(1.3 * rates()[T // 2 :]).astype(np.uint8)


def drift(counts):
    counts[: T // 2, :5] += np.random.default_rng(7).poisson(0.6, (T // 2, 5)).astype(np.uint8)
    counts[T // 2 :, 5:10] += np.random.default_rng(8).poisson(0.6, (T // 2, 5)).astype(np.uint8)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (set_column(4, lambda c: 0), ["1 channel without a spike: ch4"]),
        (set_column(4, lambda c: np.arange(T) % 2000 == 0), ["1 channel with less than a spike in 10 s: ch4"]),
        (set_column(9, lambda c: c[:, 2]), ["the same spikes in ch2, ch9"]),
        (set_column(9, lambda c: c[:, 2] + (np.arange(T) % 150 == 0)), ["the same spikes in ch2, ch9"]),
        (share, ["1 pair of channels fire in the same bins far more than others do: ch3 + ch8"]),
        (put_spikes_at_once, ["2 bins in which most channels fire at once: bin 700, 2500"]),
        (silence(1000, 1200), ["no channel fires in 1 stretch, 4 s in all, from bin 1000 on"]),
        (silence(2000, T, 7), ["1 channel silent in the first or in the last third: ch7"]),
        (grow, ["the mean rate goes from", "change their rate twofold or more"]),
        (drift, ["10 channels of 20 change their rate twofold or more"]),
        (smooth, ["counts are not whole numbers, maybe smoothed:"]),
        (lambda c: c / 3, ["counts are not whole numbers, maybe scaled, rates, or a raw signal:"]),
        (set_column(6, lambda c: np.random.default_rng(9).poisson(3, T).clip(0, 4)), ["1 channel never above 4 a bin"]),
        (set_column(6, lambda c: np.where(np.arange(T) == 50, 30, c[:, 6])), ["1 channel above 1000 spikes/s"]),
    ],
)
def test_a_fault_is_found_where_it_is_and_nothing_else(change, says):
    found = warned(changed(change))
    assert len(found) == len(says), found
    for line, words in zip(found, says, strict=True):
        assert words in line
        assert "\n" not in line


@pytest.mark.parametrize("change", [silence(1000, 1010), lambda c: c[700:703].fill(3)])
def test_a_short_silence_and_a_burst_of_several_bins_are_no_faults(change):
    assert warned(changed(change)) == ()


def test_the_first_and_the_last_third_of_each_conditions_trials_are_compared():
    counts = np.repeat([0, 1, 10, 11, 2, 12, 3, 13, 4, 14, 5, 15], 2)[:, None]
    spans = np.arange(0, 24, 2)[:, None] + [0, 2]
    known = Recording(counts, W, segments=spans, conditions=np.where(counts[::2, 0] < 10, 0, 1))
    early, late = checks.Look(known).early_and_late
    assert (early.tolist(), late.tolist()) == ([np.mean([0, 1, 10, 11])], [np.mean([4, 5, 14, 15])])


def test_the_chance_of_more_spikes_is_scipys():
    most, mean = np.array([0, 1, 4, 12]), np.array([0.3, 1.0, 3.0, 7.5])
    np.testing.assert_allclose(checks._poisson_beyond(most, mean), poisson.sf(most, mean), rtol=1e-9)


def test_a_recording_on_its_side():
    assert "20 bins of 300 channels: is time the other side?" in warned(Recording(good().counts[:300].T, W))[0]


def test_of_no_spike_at_all_one_line_says_so():
    (line,) = warned(Recording(np.zeros((T, C), np.uint8), W))
    assert f"{C} channels without a spike" in line


def test_counts_that_are_only_whether_there_was_a_spike():
    busy = np.random.default_rng(0).poisson(0.8, (T, C))
    assert "no bin has more than one spike of a channel" in warned(Recording(np.minimum(busy, 1), W))[0]
    assert warned(Recording(busy, W)) == ()
    some = busy.copy()
    some[:, :2] = np.minimum(some[:, :2], 1)
    assert "2 channels never above 1 a bin" in warned(Recording(some, W))[0]


def test_bins_that_are_narrower_than_they_are_said_to_be_are_found_out():
    marks = (np.random.default_rng(0).random((80000, 60)) < 0.01).astype(np.uint8)  # 10 spikes/s in bins of 1 ms
    assert warned(Recording(marks, 0.001)) == ()
    (said,) = warned(Recording(marks, 0.02))
    assert "are the bins narrower than 20 ms" in said
    wide = marks.reshape(4000, 20, 60).sum(axis=1)
    assert warned(Recording(wide, 0.02)) == ()


def trials(n, bins):
    return bins * np.stack([np.arange(n), np.arange(1, n + 1)], axis=1)


def test_segments_and_conditions():
    short = good(segments=np.r_[trials(2, 8), [[16, T]]])
    assert warned(short) == (
        "2 segments of 3 shorter than 10 bins: too short for a window; narrower bins or longer trials are needed",
    )
    rare = good(segments=trials(60, 100), conditions=["a"] * 29 + ["b"] * 29 + ["c"] * 2)
    assert "1 condition of 3 with fewer than 5 trials: c" in warned(rare)[0]
    brief = Recording(good().counts[:500], W)
    assert "10 s in all: little to train on" in warned(brief)[0]


def test_faults_outside_the_segments_do_not_count():
    recording = changed(silence(1000, 1200), segments=[[0, 1000], [1200, T]])
    assert warned(recording) == ()
    inside = changed(put_spikes_at_once, segments=[[500, 1000], [1500, T]])
    assert "bin 700, 2500" in warned(inside)[0]  # numbered as in the recording


def moved(shift):
    """Behaviour that the neurons tell, so many bins later."""
    drive = np.log(rates()[:, :3] / 0.2)
    return np.roll(drive, shift, axis=0)


def test_behaviour():
    labels = ("x", "y", "z")
    assert warned(good(behaviour=moved(5), behaviour_labels=labels)) == ()
    late = warned(good(behaviour=moved(30), behaviour_labels=labels))
    assert len(late) == 1
    assert "behaviour fits the spikes best 0.5" in late[0] or "behaviour fits the spikes best 0.6" in late[0]
    assert "s after them" in late[0]
    assert "s before them" in warned(good(behaviour=moved(-30), behaviour_labels=labels))[0]
    still = moved(5)
    still[:, 2] = 7
    assert warned(good(behaviour=still, behaviour_labels=labels)) == ("behaviour z never changes; leave it out",)
    lost = moved(5)
    lost[[40, 41], 1] = 1e4
    found = warned(good(behaviour=lost, behaviour_labels=labels))
    assert "behaviour y is more than 5 times its usual span away in 2 bins: bin 40, 41" in found[0]


def test_the_summary_counts_what_there_is():
    recording = changed(
        set_column(9, lambda c: c[:, 2]),
        segments=trials(60, 100),
        conditions=["a"] * 20 + ["b"] * 40,
        splits=["train"] * 50 + ["test"] * 10,
        heldout=np.arange(C) == 1,
        behaviour=moved(5),
        behaviour_labels=("x", "y", "z"),
    )
    found = survey(recording)
    assert (found.channels, found.heldout, found.bins, found.seconds) == (20, 1, 6000, 120.0)
    assert (found.segments, found.shortest, found.median, found.longest) == (60, 100, 100, 100)
    assert (found.splits, found.conditions) == ({"test": 10, "train": 50}, {"conditions": 2, "fewest": 20, "most": 40})
    assert found.duplicated == (("ch2", "ch9"),)
    assert found.rates_hz[2] == pytest.approx(np.median(recording.counts.mean(axis=0)) / W, rel=1e-3)
    assert found.behaviour["x"]["most"] == pytest.approx(moved(5)[:, 0].max())
    text = "\n".join(found.lines())
    assert "20, 1 of them held out" in text
    assert "ch2 = ch9" in text
    assert json.loads(json.dumps(dataclasses.asdict(found)))["duplicated"] == [["ch2", "ch9"]]


@settings(max_examples=60)
@given(
    hnp.arrays(
        st.sampled_from([np.uint8, np.float32]),
        st.tuples(st.integers(1, 40), st.integers(1, 5)),
        elements=st.integers(0, 9),
    ),
    st.booleans(),
)
def test_any_recording_can_be_surveyed(counts, behaving):
    behaviour = np.zeros((len(counts), 1)) if behaving else None
    found = survey(Recording(counts, W, behaviour=behaviour))
    assert json.dumps(dataclasses.asdict(found), allow_nan=False)
    assert all("\n" not in line for line in found.warnings)


def test_a_recording_of_one_segment_is_not_copied_to_be_looked_at():
    recording = good()
    assert np.shares_memory(checks.Look(recording).counts, recording.counts)
    assert len(checks.Look(replace(recording, segments=[[0, 50], [60, 100]])).counts) == 90
