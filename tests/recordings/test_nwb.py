"""NWB as pynwb writes it: units, trials, NLB's splits and held-out units, behaviour."""

import warnings
from datetime import UTC, datetime

import h5py
import numpy as np
import pytest
from damaged_files import read_or_refused_in_one_line
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rtdsae.bins import EventsBinner
from rtdsae.errors import RecordingError
from rtdsae.recordings import load, load_original
from rtdsae.recordings.binning import count_spikes

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pynwb = pytest.importorskip("pynwb")
W = 0.02


def spikes(n_units=4, seconds=10.0, seed=0):
    rng = np.random.default_rng(seed)
    return [np.sort(rng.uniform(0, seconds, 200)) for _ in range(n_units)]


def write(
    path, *, units=None, heldout=None, observed=None, trials=(), columns=None, ragged=0, series=(), where="behavior"
):
    """`trials`: (start, stop); `columns`: of the trials, by name, of lists so deep as `ragged`; `series`: pynwb's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file = pynwb.NWBFile("a test", "id", datetime(2020, 1, 1, tzinfo=UTC))
        if heldout is not None:
            file.add_unit_column("heldout", "held out")
        for i, times in enumerate(spikes() if units is None else units):
            more = {} if heldout is None else {"heldout": bool(heldout[i])}
            file.add_unit(spike_times=times, obs_intervals=None if observed is None else observed[i], **more)
        for name in columns or {}:
            file.add_trial_column(name, name, index=ragged or False)
        for i, (start, stop) in enumerate(trials):
            file.add_trial(start, stop, **{name: column[i] for name, column in (columns or {}).items()})
        module = file.create_processing_module(where, "of a test") if series else None
        for one in series:
            module.add(one)
        with pynwb.NWBHDF5IO(str(path), "w") as io:
            io.write(file)
    return path


def velocity(name="hand_vel", start=0.0, stop=10.0, rate=100.0, **more):
    t = np.arange(start, stop, 1 / rate)
    return pynwb.TimeSeries(name=name, data=np.stack([np.sin(t), np.cos(t)], 1), unit="m/s", timestamps=t, **more)


def refused(path, says, **choices):
    with pytest.raises(RecordingError, match=says) as caught:
        load(path, W, **choices)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_units_without_trials_are_one_segment_on_the_daemons_grid(tmp_path):
    recording = load(write(tmp_path / "a.nwb"), W)
    original = load_original(tmp_path / "a.nwb")
    binner, live = EventsBinner(4, W), []
    for at in range(0, len(original.stamps), 7):
        live += list(binner.push(original.samples[at : at + 7], original.stamps[at : at + 7]).counts.copy())
    np.testing.assert_array_equal(recording.counts, live)
    assert recording.channels == original.channels == ("unit0", "unit1", "unit2", "unit3")
    assert recording.segments.tolist() == [[0, recording.n_bins]]
    assert recording.session == "a"


@given(
    st.lists(st.integers(0, 400).map(lambda k: k / 1000) | st.floats(0, 0.4), min_size=1, max_size=60),
    st.sampled_from([0.001, 0.02, 0.03, 1 / 30, 1 / 128, 0.0007]),
)
def test_spikes_on_the_very_edges_are_counted_where_the_daemon_counts_them(times, width):
    times = np.sort(np.array(times)) + 1234.5
    binner = EventsBinner(1, width)
    live = list(binner.push(np.zeros(len(times)), times).counts.copy()) + list(
        binner.flush(times[-1] + 1).counts.copy()
    )
    offline = count_spikes([times], times[0], width, len(live))
    np.testing.assert_array_equal(offline, live)


def test_nlbs_splits_and_held_out_units(tmp_path, caplog):
    trials = [(2.0 * i, 2.0 * i + 1.4) for i in range(5)]
    split = ["train", "val", "none", "test", "train"]
    recording = load(write(tmp_path / "a.nwb", heldout=[0, 1, 0, 0], trials=trials, columns={"split": split}), W)
    assert recording.heldout.tolist() == [False, True, False, False]
    assert recording.splits.tolist() == ["train", "valid", "test", "train"]
    assert recording.segments.tolist() == [[0, 70], [100, 170], [300, 370], [400, 470]]
    assert "1 of 5 trials are of no split: left out" in caplog.text


def test_trials_of_one_length_have_equally_many_bins_wherever_they_begin(tmp_path):
    rng = np.random.default_rng(0)
    starts = np.cumsum(rng.uniform(0.71, 0.9, 10))
    recording = load(write(tmp_path / "a.nwb", trials=[(s, s + 0.7) for s in starts]), W)
    assert set(np.diff(recording.segments).ravel().tolist()) == {35}
    begin = min(np.concatenate(spikes()).min(), starts[0])
    first_middles = begin + W * (recording.segments[:, 0] + 0.5)
    assert ((first_middles >= starts - 1e-9) & (first_middles < starts + W + 1e-9)).all()


def test_the_last_trial_is_as_long_as_the_others_though_nothing_follows_it(tmp_path):
    units = [np.arange(0.0, 2.9, 0.1)] * 2
    path = write(tmp_path / "a.nwb", units=units, trials=[(0.0, 0.9), (1.0, 1.9), (2.013, 2.913)])
    assert np.diff(load(path, W).segments).ravel().tolist() == [45, 45, 45]


def test_an_interval_without_end_goes_to_the_end(tmp_path):
    whole, nothing = [[0.0, np.inf]], [[np.nan, np.nan]]
    recording = load(write(tmp_path / "a.nwb", observed=[whole, whole, whole, nothing]), W)
    assert recording.segments.tolist() == [[0, recording.n_bins]]


def test_what_was_not_observed_is_cut_out_and_said(tmp_path, caplog):
    recorded = [[0.0, 4.0], [5.0, 10.0]]
    observed = [recorded, recorded, recorded, [[0.0, 10.0]]]
    path = write(tmp_path / "a.nwb", observed=observed, trials=[(0.0, 3.0), (3.5, 6.0)], columns={"cond": ["a", "b"]})
    recording = load(path, W)
    assert recording.segments.tolist() == [[0, 150], [250, 300]]  # of trial b the longer piece
    assert recording.conditions.tolist() == ["a", "b"]
    assert "50 of 275 bins lie outside obs_intervals: cut out of the segments, at 4" in caplog.text
    assert "of trials in pieces the longest is kept: 25 bins of shorter ones are left out" in caplog.text
    observed[2] = [[0.0, 10.0]]
    load(write(tmp_path / "half.nwb", observed=observed), W)  # half of the units are not most
    assert "of 500 bins lie outside obs_intervals: cut out of the segments, at 4" in caplog.text
    observed[2:] = [recorded, [[0.0, 1.0]]]
    load(write(tmp_path / "b.nwb", observed=observed), W)
    assert "unit3: not observed in " in caplog.text


def test_where_what_was_not_observed_is_is_said_once_in_the_files_seconds(tmp_path, caplog):
    """A beginning, an end and holes, of units with spikes everywhere."""
    units = [np.arange(100.0, 110.01, 0.1)] * 4
    recorded = [[101.0, 102.0], [102.5, 104.0], [105.0, 106.0], [107.0, 109.0]]
    recording = load(write(tmp_path / "a.nwb", units=units, observed=[recorded] * 4), W)
    assert recording.segments.tolist() == [[50, 100], [125, 200], [250, 300], [350, 450]]
    (said,) = (record.getMessage() for record in caplog.records)
    assert said == (
        "225 of 500 bins lie outside obs_intervals: cut out of the segments, at 100 to 101 s, 102 to 102.5 s, "
        "104 to 105 s and 2 more"
    )


def test_a_condition_of_several_rows_a_trial_stays_with_its_trial(tmp_path):
    trials = [(2.0 * i, 2.0 * i + 1) for i in range(4)]
    targets = [[[0, 0]], [[1, 1], [1, 2]], [], [[0, 0]]]
    path = write(tmp_path / "a.nwb", trials=trials, columns={"target_pos": targets}, ragged=1)
    conditions = load(path, W, condition="target_pos").conditions.tolist()
    assert conditions == ["[[0, 0]]", "[[1, 1], [1, 2]]", "[]", "[[0, 0]]"]
    deeper = [[rows] for rows in targets]
    path = write(tmp_path / "b.nwb", trials=trials, columns={"target_pos": deeper}, ragged=2)
    refused(path, "'target_pos' has lists of lists: choose another as --condition", condition="target_pos")


def test_conditions_by_columns(tmp_path, caplog):
    trials = [(2.0 * i, 2.0 * i + 1) for i in range(4)]
    columns = {"target_dir": [0.0, 1.5, 0.0, 1.5], "version": [1, 1, 2, 2]}
    path = write(tmp_path / "a.nwb", trials=trials, columns=columns)
    caplog.set_level("INFO")
    assert load(path, W).conditions.tolist() == ["0", "1.5", "0", "1.5"]
    assert "conditions: the trials' column target_dir" in caplog.text
    assert load(path, W, condition="target_dir,version").conditions.tolist() == ["0/1", "1.5/1", "0/2", "1.5/2"]
    assert load(path, W, condition="none").conditions is None
    with h5py.File(path, "a") as file:
        table = file["intervals/trials"]
        table["short"] = [1.0, 2.0]
    refused(path, "trials' column 'short' has 2 rows for 4 trials: the file is damaged", condition="target_dir,short")
    refused(path, "no column 'colour': they have .*target_dir", condition="colour")


def test_conditions_that_differ_in_a_late_digit_are_several(tmp_path):
    trials = [(2.0 * i, 2.0 * i + 1) for i in range(4)]
    path = write(tmp_path / "a.nwb", trials=trials, columns={"cond_id": [1000001.0, 1000002.0, 1000001.0, 0.1]})
    assert load(path, W).conditions.tolist() == ["1000001", "1000002", "1000001", "0.1"]


def test_trials_of_no_condition_and_trials_within_another_are_left_out_and_said(tmp_path, caplog):
    trials = [(0.0, 4.0), (1.0, 2.0), (5.0, 6.0), (7.0, 8.0)]
    path = write(tmp_path / "a.nwb", trials=trials, columns={"cond_id": [1.0, 2.0, np.nan, 4.0]})
    recording = load(path, W)
    assert recording.conditions.tolist() == ["1", "4"]
    assert recording.segments.tolist() == [[0, 200], [350, 400]]
    assert "1 trials are of no condition (NaN): left out" in caplog.text
    assert "1 trials lie inside another: left out" in caplog.text
    path = write(tmp_path / "b.nwb", trials=trials, columns={"cond_id": [np.nan] * 4})
    refused(path, "no trial can be used: each is of no split or condition")


def test_a_trial_that_begins_in_a_long_one_begins_at_its_end_be_there_another_between(tmp_path):
    path = write(tmp_path / "a.nwb", trials=[(0.0, 5.0), (1.0, 2.0), (3.0, 6.0)])
    assert load(path, W).segments.tolist() == [[0, 250], [250, 300]]


def test_a_trial_whose_condition_is_known_in_part_is_left_out(tmp_path):
    trials, columns = [(0.0, 1.0), (2.0, 3.0), (4.0, 5.0)], {"a": [0.0, np.nan, 2.0], "b": [1.0, 1.0, 1.0]}
    path = write(tmp_path / "a.nwb", trials=trials, columns=columns)
    assert load(path, W, condition="a,b").conditions.tolist() == ["0/1", "2/1"]


@pytest.mark.parametrize(
    "column",
    ["condition", "conditions", "condition_id", "cond_id", "cond", "target_direction", "target_dir", "cond_dir"],
)
def test_conditions_have_names_that_say_so(tmp_path, column):
    path = write(tmp_path / "a.nwb", trials=[(0.0, 1.0), (2.0, 3.0)], columns={column: ["a", "b"], "other": [1, 2]})
    assert load(path, W).conditions.tolist() == ["a", "b"]


def test_behaviour_comes_onto_the_bins(tmp_path):
    recording = load(write(tmp_path / "a.nwb", trials=[(0.0, 9.0)], series=[velocity(rate=1000.0)]), W)
    assert recording.behaviour_labels == ("hand_vel_x", "hand_vel_y")
    np.testing.assert_allclose(recording.behaviour[:, 0], np.sin(W * (np.arange(recording.n_bins) + 0.5)), atol=2e-3)
    assert recording.segments.tolist() == [[0, 450]]


@pytest.mark.parametrize(("yes", "no"), [("True", "False"), ("1", "0"), (1.0, 0.0)])
def test_held_out_units_may_be_told_by_text(tmp_path, yes, no):
    path = with_heldout(write(tmp_path / "a.nwb"), [no, yes, no, no])
    assert load(path, W).heldout.tolist() == [False, True, False, False]


def test_what_tells_nothing_of_held_out_units_is_refused(tmp_path):
    refused(with_heldout(write(tmp_path / "a.nwb"), ["no", "perhaps", "no", "no"]), "heldout holds 'no': write true or")


def with_heldout(path, column):
    with h5py.File(path, "r+") as file:
        file["units/heldout"] = column
    return path


def test_slow_behaviour_is_drawn_between_its_samples_and_what_is_far_between_is_not_known(tmp_path, caplog):
    t = np.arange(0, 10.01, 0.05)
    slow = pynwb.TimeSeries(name="force", data=t, unit="N", rate=20.0, starting_time=0.0, conversion=2.0, offset=1.0)
    recording = load(write(tmp_path / "a.nwb", trials=[(1.0, 9.0)], series=[slow]), W)
    begin = np.concatenate(spikes()).min()
    middles = begin + W * (np.arange(recording.n_bins) + 0.5)
    np.testing.assert_allclose(recording.behaviour[60:400, 0], 1 + 2 * middles[60:400], atol=0.05)
    assert recording.behaviour_labels == ("force",)
    lost = velocity()
    lost.data[300:500] = np.nan
    recording = load(write(tmp_path / "b.nwb", trials=[(0.0, 9.0)], series=[lost]), W)
    assert recording.segments.tolist() == [[0, 150], [249, 450]]  # the sample at 5.0 s is the end of bin 249
    assert np.isfinite(recording.behaviour).all()
    assert "hand_vel is not known in 99 of 450 bins: cut out" in caplog.text


def test_of_several_series_none_is_taken_until_one_is_named(tmp_path, caplog):
    path = write(tmp_path / "a.nwb", series=[velocity(), velocity("cursor_vel")])
    assert load(path, W).behaviour is None
    assert "processing/behavior/cursor_vel, processing/behavior/hand_vel is taken" in caplog.text
    assert load(path, W, behaviour="hand_vel").behaviour_labels == ("hand_vel_x", "hand_vel_y")
    assert load(path, W, behaviour="processing/behavior/cursor_vel").behaviour.shape[1] == 2
    assert load(path, W, behaviour="none").behaviour is None
    refused(path, "no series are called 'eye': there are processing/behavior/cursor_vel", behaviour="eye")


def test_a_series_elsewhere_is_named_and_not_taken(tmp_path, caplog):
    path = write(tmp_path / "a.nwb", series=[velocity()], where="kinematics")
    assert load(path, W).behaviour is None
    assert (
        "none of processing/kinematics/hand_vel is taken as behaviour: choose with rtdsae convert --behaviour NAME"
        in caplog.text
    )
    assert load(path, W, behaviour="hand_vel").behaviour is not None


def test_the_original_is_the_spikes_in_order_and_without_what_is_held_out(tmp_path):
    original = load_original(write(tmp_path / "a.nwb", heldout=[0, 1, 0, 0]))
    assert (original.nominal_rate_hz, len(original.stamps)) == (0.0, 800)
    assert (np.diff(original.stamps) >= 0).all()
    seen = original.select(~original.heldout)
    assert seen.channels == ("unit0", "unit2", "unit3")
    np.testing.assert_array_equal(seen.stamps[seen.samples[:, 0] == 1], spikes()[2])


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(
        RecordingError, match=r"a.nwb: NWB has spike times and no bins: say it with --bin-width SECONDS"
    ):
        load(write(tmp_path / "a.nwb"))
    refused(write(tmp_path / "b.nwb", units=[]), "no units with spike times: found acquisition")
    refused(write(tmp_path / "c.nwb"), "--condition x: the file has no trials", condition="x")
    refused(write(tmp_path / "d.nwb"), "--stream means nothing for NWB", stream="x")
    refused(
        write(tmp_path / "e.nwb", trials=[(20.0, 21.0)], observed=[[[0, 10.0]]] * 4), "no bin of a trial was observed"
    )


def test_an_index_that_does_not_fit_is_refused(tmp_path):
    path = write(tmp_path / "a.nwb")
    with h5py.File(path, "a") as file:
        file["units/spike_times_index"][1] = 5
    refused(path, "the index of spike_times does not fit it")


def test_tables_of_another_shape_are_refused(tmp_path):
    path = write(tmp_path / "a.nwb", observed=[[[0, 5.0], [6.0, 10.0]]] * 4, series=[velocity()])
    with h5py.File(path, "a") as file:
        series = file["processing/behavior/hand_vel"]
        stamps = series["timestamps"][()]
        del series["timestamps"]
        series["timestamps"] = stamps[:, None]
    refused(path, r"behaviour hand_vel has 1000 samples and timestamps of shape \(1000, 1\)")
    with h5py.File(path, "a") as file:
        spans = file["units/obs_intervals"][()]
        del file["units/obs_intervals"]
        file["units/obs_intervals"] = spans.ravel()[:8]
    refused(path, "obs_intervals has no beginning and end in each row")


def test_less_than_a_bin_is_refused(tmp_path):
    refused(write(tmp_path / "a.nwb", units=[[1.0, 1.001]]), "no bin of 0.02 s between the first spike and the last")


def test_times_that_are_none_are_left_out_and_absurd_ones_refused(tmp_path, caplog):
    times = spikes()
    times[0][:3] = [np.nan, np.inf, 1e300]
    assert load(write(tmp_path / "a.nwb", units=times), W).n_bins < 510
    assert "3 spike times are no times" in caplog.text
    times[0][3] = 8e9
    refused(write(tmp_path / "b.nwb", units=times), "bins of 4 channels are too many")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    trials = [(2.0 * i, 2.0 * i + 1.4) for i in range(5)]
    path = tmp_path_factory.mktemp("nwb") / "a.nwb"
    write(path, trials=trials, columns={"split": ["train", "val", "none", "test", "train"]}, series=[velocity()])
    return path.read_bytes()


@pytest.mark.parametrize("kept", [0, 7, 100, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(tmp_path, whole, kept):
    (tmp_path / "a.nwb").write_bytes(whole[: int(kept if kept > 1 else kept * len(whole))])
    refused(tmp_path / "a.nwb", "not a readable HDF5 file|neither HDF5")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=4))
def test_a_damaged_file_is_read_or_refused_in_one_line(tmp_path, whole, edits):
    data = bytearray(whole)
    for place, value in edits:
        data[int(place * len(data))] ^= value
    (tmp_path / "a.nwb").write_bytes(data)
    assert read_or_refused_in_one_line(tmp_path / "a.nwb", W)
