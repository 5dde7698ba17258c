"""The binners on real time stamps: those of six recordings of people, raw and synchronised, without their signals.

They have clock resets, backward stamps, gaps, and rates that are not the nominal ones. They are no part of the project
and may not be: the tests are skipped where they are not.
"""

import itertools
import os
from pathlib import Path

import numpy as np
import pytest

from rtdsae.bins import Bins, EventsBinner, RegularBinner

DATA = os.environ.get("RTDSAE_DATA") or Path(__file__).parent.parent.parent / "shared" / "data"
FOLDER = Path(DATA) / "xdf" / "timing_only"
WIDTH = 0.02
CHUNKS = ([1], [7, 1, 30, 2])


def series(name):
    """A series' stamps `(n,)` in the order in which they came, and its nominal rate."""
    file, _, stream = name.partition("-")
    path = FOLDER / f"{file}.npz"
    if not path.is_file():
        pytest.skip(f"{path}: no such time stamps here; set RTDSAE_DATA to the folder that holds xdf/timing_only")
    with np.load(path) as arrays:
        return arrays[f"{stream}_ts"], float(arrays[f"{stream.partition('_')[0]}_meta"][3])


def names():
    """Of all series that have samples: file, number of the stream, and raw or synced."""
    for file in sorted(FOLDER.glob("*.npz")):
        with np.load(file) as arrays:
            yield from (f"{file.stem}-{key[:-3]}" for key in arrays if key.endswith("_ts") and len(arrays[key]) > 1)


ALL = list(names())
REGULAR = [name for name in ALL if series(name)[1]] or ["clock_resets-s1_raw"]  # where there are none, say so
ALL = ALL or ["clock_resets-s0_raw"]


def in_chunks(push, values, stamps, sizes):
    """The bins of a stream that comes in chunks of these sizes, over and over."""
    edges = itertools.accumulate(itertools.cycle(sizes), initial=0)
    edges = [*itertools.takewhile(lambda at: at < len(stamps), edges), len(stamps)]
    pushed = ([array.copy() for array in push(values[i:j], stamps[i:j])] for i, j in itertools.pairwise(edges))
    return Bins(*map(np.concatenate, zip(*pushed, strict=True)))


def check_order(bins, counters, stamps):
    """Every bin once, in order; each ends after the one before, but where the clock was set back."""
    assert bins.index.tolist() == list(range(len(bins.index)))
    set_back, set_forward = int((np.diff(stamps) < -1).sum()), int((np.diff(stamps) > 60).sum())
    assert (np.diff(bins.t_end) <= 0).sum() == set_back
    assert counters.resets == set_back + set_forward
    assert counters.gaps == (~bins.observed).sum()
    assert not bins.counts[~bins.observed].any()


def check_chunks(run, whole):
    """The same bins and counters whatever the chunks."""
    for sizes in CHUNKS:
        bins, counters = run(sizes)
        assert [array.tobytes() for array in bins] == [array.tobytes() for array in whole[0]]
        assert counters == whole[1]


@pytest.mark.parametrize("one_sample_a_bin", [True, False])
@pytest.mark.parametrize("name", REGULAR)
def test_every_sample_of_a_regular_stream_is_in_its_bin_or_counted(name, one_sample_a_bin):
    stamps, rate = series(name)
    n, k = len(stamps), 1 if one_sample_a_bin else max(2, round(WIDTH * rate))
    values = np.stack([np.ones(n), np.arange(n)], axis=1)  # the second says which sample it is

    def run(sizes):
        binner = RegularBinner(2, k / rate, k)
        return in_chunks(binner.push, values, stamps, sizes), binner.counters

    bins, counters = run([n])
    check_order(bins, counters, stamps)
    seen = bins.observed
    accounted = k * int(seen.sum()) + counters.late + counters.duplicates + counters.partial
    assert 0 <= n - accounted < k
    assert counters.nan == counters.overflow == 0
    assert k * seen.sum() > 0.6 * n
    assert (bins.counts[seen, 0] == k).all()
    assert np.isin(bins.t_end[seen], stamps).all()
    if k == 1:
        which = bins.counts[seen, 1].astype(int)
        assert (np.diff(which) > 0).all()
        assert bins.t_end[seen].tolist() == stamps[which].tolist()
    check_chunks(run, (bins, counters))


@pytest.mark.parametrize("lateness", [0.1, 1.0])
@pytest.mark.parametrize("name", ALL)
def test_every_event_is_in_its_bin_or_counted(name, lateness):
    stamps, _ = series(name)
    n = len(stamps)
    channels = np.arange(n) % 3

    def run(sizes):
        binner = EventsBinner(3, WIDTH, lateness)
        bins = in_chunks(binner.push, channels, stamps, sizes)
        last = [array.copy() for array in binner.flush(stamps[-1] + 2)]  # all are closed by then
        return Bins(*map(np.concatenate, zip(bins, last, strict=True))), binner.counters

    bins, counters = run([n])
    check_order(bins, counters, stamps)
    assert int(bins.counts.sum()) + counters.late + counters.partial == n
    assert counters.nan == counters.overflow == counters.duplicates == 0
    check_chunks(run, (bins, counters))
    if lateness == 1.0 and not counters.resets:  # no stamp goes back further: none is late, whatever their order
        times = np.round(stamps * 1e9).astype(np.int64)
        assert counters.late == (times < times[0]).sum()
        expected = np.zeros(bins.counts.shape)
        there = times >= times[0]
        np.add.at(expected, ((times[there] - times[0]) // round(1e9 * WIDTH), channels[there]), 1)
        np.testing.assert_array_equal(bins.counts, expected)


def test_these_stamps_have_what_they_are_here_for():
    found = {name: np.diff(series(name)[0]) for name in ALL}
    assert any((steps < -600_000).any() for steps in found.values())
    assert any(((steps > -1) & (steps < 0)).sum() > 100 for steps in found.values())
    assert any(((steps > 0.5) & (steps < 1)).any() for steps in found.values())
    assert any(abs(np.median(found[name]) * series(name)[1] - 1) > 0.05 for name in REGULAR)
