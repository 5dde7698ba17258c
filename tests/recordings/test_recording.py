"""The noun: what it accepts, what it refuses and in which words, how it is cut."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rtdsae.errors import RecordingError
from rtdsae.recordings import Recording
from rtdsae.recordings.segments import scraps


def recording(n_segments: int = 6, bins: int = 10, **parts) -> Recording:
    rng = np.random.RandomState(0)
    n_bins = n_segments * bins
    stops = np.arange(1, n_segments + 1) * bins
    full = {
        "counts": rng.poisson(0.5, (n_bins, 3)).astype(np.uint8),
        "bin_width_s": 0.02,
        "channels": ("a", "b", "c"),
        "segments": np.stack([stops - bins, stops], axis=1),
        "behaviour": np.stack([np.arange(n_bins), -np.arange(n_bins)], axis=1) / 7,
        "behaviour_labels": ("vel_x", "vel_y"),
        "conditions": np.arange(n_segments) % 2,
        "external": rng.randn(n_bins, 1),
        "external_labels": ("cue",),
        "true_rates": np.full((n_bins, 3), 25.0),
        "session": "monday",
        "heldout": np.array([False, False, True]),
    }
    return Recording(**full | parts)


def test_counts_and_a_bin_width_are_enough():
    plain = Recording(np.ones((7, 2), int), 0.05)
    assert plain.channels == ("ch0", "ch1")
    assert plain.segments.tolist() == [[0, 7]]
    assert (plain.n_bins, plain.n_channels, plain.n_segments) == (7, 2, 1)
    assert plain.behaviour is None
    assert plain.behaviour_labels == ()


def test_labels_are_made_up_where_none_are_given():
    assert recording(behaviour_labels=()).behaviour_labels == ("behaviour0", "behaviour1")


NOT_FINITE = np.full((60, 2), 0.5)
NOT_FINITE[17, 1] = np.nan


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"counts": np.zeros((60, 3), complex)}, "counts is of type complex128"),
        ({"counts": np.array([["1"] * 3] * 60)}, "counts is of type <U1"),
        ({"counts": np.zeros(60)}, r"counts has shape \(60,\)"),
        ({"counts": np.zeros((6, 10, 3))}, "trials follow one another, and segments say where each is"),
        ({"counts": np.zeros((60, 0))}, r"counts has shape \(60, 0\)"),
        ({"counts": np.full((60, 3), np.inf)}, "counts is not finite at bin 0, column 0"),
        ({"counts": np.full((60, 3), -1)}, "counts holds -1 at bin 0, column 0"),
        ({"bin_width_s": 0}, "a bin width of 0.0 s: expected 0.0001 to 10 s"),
        ({"bin_width_s": 20}, "a bin width of 20.0 s: expected 0.0001 to 10 s"),
        ({"bin_width_s": "wide"}, "bin_width_s is 'wide'"),
        ({"bin_width_s": np.array([0.02, 0.04])}, r"bin_width_s is array\(\[0.02, 0.04\]\): a number of seconds"),
        ({"bin_width_s": np.nan}, "a bin width of nan s"),
        ({"channels": ("a", "b")}, "channels has 2 labels for 3 columns"),
        ({"channels": ("a", "b", "a")}, "channels has 'a' twice"),
        ({"channels": "abc"}, "channels is one text"),
        ({"segments": [[0, 10], [9, 20]]}, r"segments 0 and 1 overlap .* \[\[0, 10\], \[9, 20\]\]"),
        ({"segments": [[10, 20], [0, 10]]}, "segments 0 and 1 overlap or are out of order"),
        ({"segments": [[0, 61]]}, r"segment 0 is \[0, 61\]: .* within 0 to 60"),
        ({"segments": [[0, 5], [7, 7]]}, r"segment 1 is \[7, 7\]"),
        ({"segments": [[0.0, 5.0]]}, r"segments is float64 \(1, 2\)"),
        ({"segments": [0, 5]}, r"segments is int64 \(2,\)"),
        ({"behaviour": NOT_FINITE}, "behaviour is not finite at bin 17, column 1: fill such bins"),
        ({"behaviour": np.zeros((59, 2))}, "behaviour has 59 bins, counts has 60"),
        ({"behaviour_labels": ("x",)}, "behaviour_labels has 1 labels for 2 columns"),
        ({"behaviour": None}, "behaviour_labels has 2 labels for 0 columns"),
        ({"external": np.zeros((60, 0)), "external_labels": ()}, r"external has shape \(60, 0\)"),
        ({"true_rates": np.zeros((60, 2))}, r"true_rates is \(60, 2\), counts is \(60, 3\)"),
        ({"true_rates": np.full((60, 3), -0.5)}, "true_rates holds -0.5"),
        ({"conditions": np.zeros(6)}, r"conditions is float64 \(6,\)"),
        ({"conditions": np.zeros(5, int)}, r"conditions is int64 \(5,\)"),
        ({"splits": ["train"] * 5 + ["val"]}, "splits holds 'val': a segment is one of train, valid, test"),
        ({"splits": ["train"]}, r"splits is <U5 \(1,\)"),
        ({"labels": [["left"]] * 6}, "labels is of type <U4: numbers are needed"),
        ({"labels": np.zeros((5, 2))}, r"labels has shape \(5, 2\): one row of factors for each of 6 segments"),
        ({"labels": np.zeros(6)}, r"labels has shape \(6,\)"),
        ({"labels": np.zeros((6, 0))}, r"labels has shape \(6, 0\)"),
        ({"labels": [[0, 1]] * 5 + [[0, np.nan]]}, "labels is not finite at segment 5, column 1"),
        ({"labels": np.zeros((6, 2)), "label_names": ("speed",)}, "label_names has 1 labels for 2 columns"),
        ({"labels": np.zeros((6, 2)), "label_names": ("speed", "speed")}, "label_names has 'speed' twice"),
        ({"labels": np.zeros((6, 1)), "label_names": "s"}, "label_names is one text"),
        ({"label_names": ("speed",)}, "label_names has 1 labels for 0 columns"),
        ({"heldout": [True, True, True]}, "heldout is true for every channel"),
        ({"heldout": [0, 1, 2]}, "heldout is int64"),
        ({"heldout": [True]}, r"heldout is bool \(1,\)"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(parts, says):
    with pytest.raises(RecordingError, match=says) as caught:
        recording(**parts)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("width", [np.array([0.02]), np.array([[0.02]]), [0.02], np.float32(0.02)])
def test_a_bin_width_of_one_element_is_a_number(width):
    """As MATLAB writes its numbers."""
    assert recording(bin_width_s=width).bin_width_s == pytest.approx(0.02)


def test_select_takes_segments_in_the_order_given():
    source = recording(splits=["train"] * 4 + ["valid", "test"])
    part = source.select([4, 1])
    assert part.segments.tolist() == [[0, 10], [10, 20]]
    assert np.array_equal(part.counts, np.concatenate([source.counts[40:50], source.counts[10:20]]))
    assert np.array_equal(part.behaviour[10:], source.behaviour[10:20])
    assert np.array_equal(part.external[:10], source.external[40:50])
    assert part.conditions.tolist() == [0, 1]
    assert part.splits.tolist() == ["valid", "train"]
    assert part.channels == source.channels
    assert np.array_equal(part.heldout, source.heldout)


@given(order=st.lists(st.integers(0, 5), min_size=1, max_size=12))
def test_labels_go_with_their_segments(order):
    labels = np.stack([np.arange(6), np.arange(6) ** 2], axis=1)
    part = recording(labels=labels, label_names=("order", "square")).select(order)
    assert part.labels.dtype == np.float64
    assert part.labels.tolist() == labels[order].tolist()
    assert part.label_names == ("order", "square")


@given(
    labels=hnp.arrays(
        st.sampled_from([np.int8, np.float32, np.float64]),
        hnp.array_shapes(min_dims=1, max_dims=3, min_side=5, max_side=7),
    )
)
def test_labels_are_one_finite_row_a_segment_or_refused(labels):
    if labels.ndim == 2 and len(labels) == 6 and np.isfinite(labels).all():
        assert np.array_equal(recording(labels=labels).labels, labels)
    else:
        with pytest.raises(RecordingError, match=r"^labels (has shape|is not finite at segment \d, column \d)"):
            recording(labels=labels)


def test_label_names_are_made_up_where_none_are_given():
    assert recording(labels=np.zeros((6, 2), int)).label_names == ("label0", "label1")
    assert recording().label_names == ()


def test_select_takes_a_mask_and_drops_bins_of_no_segment():
    source = recording(segments=[[2, 5], [8, 12]], conditions=None)
    assert source.select(np.array([False, True])).hash == source.select([1]).hash
    assert np.array_equal(source.select([0, 1]).counts, np.concatenate([source.counts[2:5], source.counts[8:12]]))


@pytest.mark.parametrize("choice", [[], [6], [-1], [0.5], np.zeros(6, bool), np.ones(5, bool)])
def test_select_refuses_what_is_not_there(choice):
    with pytest.raises(RecordingError, match="selected"):
        recording().select(choice)


def test_trials_are_split_by_segment_with_the_last_as_test():
    source = recording(n_segments=20, bins=2)
    splits = source.split(valid=0.25, test=0.2).splits.tolist()
    assert splits[16:] == ["test"] * 4
    assert [i for i, split in enumerate(splits) if split == "valid"] == [2, 6, 10, 14]
    assert splits.count("train") == 12


def test_a_continuous_session_is_split_in_time():
    parts = recording(segments=[[0, 60]], conditions=["only"], labels=[[0.5, 90]]).split(valid=0.25, test=0.2)
    assert parts.segments.tolist() == [[0, 36], [36, 48], [48, 60]]
    assert parts.splits.tolist() == ["train", "valid", "test"]
    assert parts.conditions.tolist() == ["only"] * 3
    assert parts.labels.tolist() == [[0.5, 90]] * 3


def test_segments_cut_in_time_keep_their_own_labels():
    parts = recording(segments=[[0, 30], [30, 60]], conditions=None, labels=[[1], [2]]).split(valid=0.25, test=0.2)
    assert parts.labels.tolist() == [[1]] * 3 + [[2]] * 3


def test_scraps_that_gaps_left_over_are_trained_on_and_count_for_nothing():
    spans = [[0, 300], [301, 304], [310, 600], [600, 602]]
    parts = recording(n_segments=1, bins=602, segments=spans, conditions=None).split(valid=0.25, test=0.2)
    assert parts.splits.tolist() == [*["train", "valid", "test"], "train", *["train", "valid", "test"], "train"]
    assert parts.segments.tolist()[3] == [301, 304]
    firsts = 30 * np.arange(11)
    trials = np.stack([firsts, firsts + np.r_[[30] * 10, 2]], 1)
    parts = recording(n_segments=1, bins=302, segments=trials, conditions=None).split(valid=0.25, test=0.2)
    assert np.flatnonzero(parts.splits == "test").tolist() == [8, 9]
    assert np.flatnonzero(parts.splits == "valid").tolist() == [2, 6]
    assert parts.splits[10] == "train"
    first = np.concatenate([[[0, 2]], trials[:10] + 2])
    parts = recording(n_segments=1, bins=302, segments=first, conditions=None).split(valid=0.25, test=0.2)
    assert np.flatnonzero(parts.splits == "test").tolist() == [9, 10]
    assert np.flatnonzero(parts.splits == "valid").tolist() == [3, 7]


def test_a_scrap_is_less_than_a_tenth_of_the_mean():
    assert scraps(np.array([19, 1])).tolist() == [False, False]
    assert scraps(np.array([20, 1])).tolist() == [False, True]


def test_from_five_segments_on_whole_ones_are_kept_apart():
    five, four = (recording(n_segments=n).split(valid=0.25, test=0.2).splits.tolist() for n in (5, 4))
    assert five == ["train", "train", "valid", "train", "test"]
    assert four == ["train", "valid", "test"] * 4


def test_without_splits_all_is_trained_on():
    assert [recording().in_split(name).sum() for name in ("train", "valid", "test")] == [6, 0, 0]


def test_its_own_splits_win():
    own = recording(splits=["test"] + ["train"] * 5)
    assert own.split(valid=0.5, test=0.5) is own


@pytest.mark.parametrize("fractions", [(0.2, 1.0), (-0.1, 0.2), (0.01, 0.2), (0.2, 0.01), (0.95, 0.2)])
def test_a_split_with_an_empty_part_is_refused(fractions):
    with pytest.raises(RecordingError, match=r"split|too few"):
        recording().split(*fractions)
    with pytest.raises(RecordingError, match=r"split|too few"):
        recording(segments=[[0, 10]], conditions=None).split(*fractions)


@given(n=st.integers(1, 60), valid=st.floats(0, 0.9), test=st.floats(0, 0.9))
def test_a_split_covers_every_bin_once(n, valid, test):
    try:
        source = recording(n_segments=n, bins=4)
        parts = source.split(valid, test)
    except RecordingError:
        return
    covered = np.concatenate([np.arange(*segment) for segment in parts.segments])
    assert np.array_equal(covered, np.arange(source.n_bins))
    assert "train" in parts.splits
    assert ("test" in parts.splits) == (test > 0)
    assert ("valid" in parts.splits) == (valid > 0)


def test_the_hash_is_of_the_content():
    assert recording().hash == recording().hash
    hashes = {recording().hash}
    changed = recording().counts.copy()
    changed[59, 2] += 1
    for parts in (
        {"counts": changed},
        {"bin_width_s": 0.01},
        {"channels": ("a", "b", "d")},
        {"session": "tuesday"},
        {"splits": ["train"] * 6},
        {"heldout": None},
        {"conditions": list("ababab")},
        {"segments": [[0, 10], [10, 20], [20, 30], [30, 40], [40, 50], [50, 59]]},
        {"labels": np.zeros((6, 1))},
        {"labels": np.ones((6, 1))},
        {"labels": np.ones((6, 1)), "label_names": ("speed",)},
    ):
        hashes.add(recording(**parts).hash)
    assert len(hashes) == 12


def test_a_new_kind_of_part_does_not_change_the_hash_of_recordings_without_it():
    first = Recording(np.ones((7, 2), np.uint8), 0.05, conditions=["a"])  # as version 0.1.0 hashed it
    assert first.hash == "640efc82737b89ade0bc24ddbcf6a20f10e92f419153c416d00f877ae5ef489f"


def test_it_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        recording().bin_width_s = 1.0
