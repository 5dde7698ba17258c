"""MATLAB: trial data, spike-count trials, one matrix; v5 as SciPy writes it, v7.3 as MATLAB lays it out in HDF5."""

import os
from pathlib import Path

import h5py
import numpy as np
import pytest
from damaged_files import read_or_refused_in_one_line
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.io import savemat
from scipy.sparse import csc_matrix

from rtdsae.errors import RecordingError
from rtdsae.recordings import load

DATA = Path(os.environ.get("RTDSAE_DATA") or Path(__file__).parents[2] / ".." / "shared" / "data")


def trials(n=4, areas=("M1",), seed=0, **more):
    rng = np.random.default_rng(seed)
    made = []
    for i in range(n):
        bins = 10 + i
        trial = {"bin_size": 0.01, "target_direction": i * np.pi / 2, "idx_go_cue": 3.0, "monkey": "M"}
        for c, area in enumerate(areas, 3):
            trial[f"{area}_spikes"] = rng.poisson(1.0, (bins, c)).astype(np.uint8)
            trial[f"{area}_unit_guide"] = np.stack([np.arange(1, c + 1), np.ones(c)], axis=1)
        trial |= {"vel": rng.normal(size=(bins, 2)), "pos": rng.normal(size=(bins, 2))}
        made.append(trial | {name: value[i] for name, value in more.items()})
    return made


def struct_array(rows):
    array = np.empty(len(rows), [(name, object) for name in rows[0]])
    for i, row in enumerate(rows):
        array[i] = tuple(row.values())
    return array


def save_v73(path, variables):
    """As MATLAB does: columns first, classes in attributes, struct arrays as references, a block in front."""

    def put(file, group, name, value, in_array=False):
        if isinstance(value, list):
            sub = group.create_group(name)
            sub.attrs["MATLAB_class"] = np.bytes_("struct")
            for field in value[0]:
                refs = sub.create_dataset(field, (len(value), 1), h5py.ref_dtype)
                for i, row in enumerate(value):
                    put(file, file.require_group("#refs#"), f"{name}{field}{i}", row[field])
                    refs[i, 0] = file[f"#refs#/{name}{field}{i}"].ref
        elif isinstance(value, str):
            group[name] = np.array([[ord(c)] for c in value], np.uint16)
            group[name].attrs["MATLAB_class"] = np.bytes_("char")
        else:
            group[name] = np.atleast_2d(value).T
            group[name].attrs["MATLAB_class"] = np.bytes_("double")

    with h5py.File(path, "w", userblock_size=512) as file:
        for name, value in variables.items():
            put(file, file, name, value)
    with path.open("r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file, Platform: TEST".ljust(128))


def save(path, variables, version):
    if version == "7.3":
        save_v73(path, variables)
    else:
        savemat(path, {n: struct_array(v) if isinstance(v, list) else v for n, v in variables.items()})
    return path


VERSIONS = pytest.mark.parametrize("version", ["5", "7.3"])


def refused(path, says, *args, **choices):
    with pytest.raises(RecordingError, match=says) as caught:
        load(path, *args, **choices)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@VERSIONS
def test_trial_data(tmp_path, version, caplog):
    caplog.set_level("INFO")
    rows = trials()
    recording = load(save(tmp_path / "day.mat", {"trial_data": rows}, version))
    np.testing.assert_array_equal(recording.counts, np.concatenate([row["M1_spikes"] for row in rows]))
    np.testing.assert_array_equal(recording.behaviour, np.concatenate([row["vel"] for row in rows]))
    assert recording.behaviour_labels == ("vel_x", "vel_y")
    assert recording.channels == ("elec1_unit1", "elec2_unit1", "elec3_unit1")
    assert recording.segments.tolist() == [[0, 10], [10, 21], [21, 33], [33, 46]]
    assert recording.conditions.tolist() == [0, 90, 180, 270]
    assert (recording.bin_width_s, recording.session) == (0.01, "day")
    assert "behaviour: vel (besides there are pos)" in caplog.text


@VERSIONS
def test_choices(tmp_path, version):
    path = save(tmp_path / "a.mat", {"trial_data": trials(areas=("M1", "PMd"))}, version)
    recording = load(path, behaviour="pos,vel", condition="monkey")
    assert recording.channels[:4] == ("M1_elec1_unit1", "M1_elec2_unit1", "M1_elec3_unit1", "PMd_elec1_unit1")
    assert recording.behaviour_labels == ("pos_x", "pos_y", "vel_x", "vel_y")
    assert recording.conditions.tolist() == ["M"] * 4
    assert load(path, behaviour="none").behaviour is None
    assert load(path, condition="none").conditions is None
    refused(path, "no behaviour 'acc': there are (vel, pos|pos, vel)", behaviour="acc")
    refused(path, "no field 'colour'", condition="colour")
    refused(path, "conditions: vel is neither one number nor a text", condition="vel")


def test_bins_in_which_behaviour_is_not_known_are_cut_out(tmp_path, caplog):
    rows = trials()
    rows[1]["vel"][:4] = np.nan
    recording = load(save(tmp_path / "a.mat", {"trial_data": rows}, "5"))
    assert recording.segments.tolist() == [[0, 10], [14, 21], [21, 33], [33, 46]]
    assert recording.conditions.tolist() == [0, 90, 180, 270]
    assert "vel is not known in 4 of 46 bins" in caplog.text
    assert "1 of 4 trials now begin later than the others, for want of behaviour vel" in caplog.text
    caplog.clear()
    rows[1]["vel"][:4], rows[1]["vel"][6:9] = 0, np.nan
    recording = load(save(tmp_path / "b.mat", {"trial_data": rows}, "5"))
    assert recording.segments.tolist() == [[0, 10], [10, 16], [21, 33], [33, 46]]  # one trial, not two
    assert recording.conditions.tolist() == [0, 90, 180, 270]
    assert "begin later" not in caplog.text
    for row in rows:
        row["vel"][:2] = np.nan
    load(save(tmp_path / "c.mat", {"trial_data": rows}, "5"))
    assert "begin later" not in caplog.text  # than one another


def test_bins_are_added_up(tmp_path):
    path = save(tmp_path / "a.mat", {"trial_data": trials()}, "5")
    assert load(path, 0.02).segments.tolist() == [[0, 5], [5, 10], [10, 16], [16, 22]]
    refused(path, "its bins are 0.01 s wide, 0.025 s was asked for: no whole multiple", 0.025)
    refused(path, "no segment is as long as one bin of 0.5 s", 0.5)


@VERSIONS
def test_count_trials_are_channels_by_time(tmp_path, version, caplog):
    caplog.set_level("INFO")
    rng = np.random.default_rng(0)
    rows = [
        {"data": rng.poisson(0.1, (5, 30 + i)), "condition": f"reach{i % 2}", "trialId": float(i)} for i in range(4)
    ]
    path = save(tmp_path / "a.mat", {"D": rows}, version)
    refused(path, "does not say how wide its bins are: say it with --bin-width")
    recording = load(path, 0.001)
    assert "does not say how wide its bins are: taken to be 1 ms" in caplog.text
    np.testing.assert_array_equal(recording.counts, np.concatenate([row["data"].T for row in rows]))
    assert recording.conditions.tolist() == ["reach0", "reach1", "reach0", "reach1"]
    assert "data: rows are taken as channels: as many in every trial" in caplog.text


def test_count_trials_that_are_neither_are_refused(tmp_path):
    rows = [{"spikes": np.ones((5 + i, 30 + i))} for i in range(3)]
    refused(save(tmp_path / "a.mat", {"D": rows}, "5"), "neither equally many rows nor columns", 0.001)


@VERSIONS
@pytest.mark.parametrize("turned", [False, True])
def test_a_matrix_whose_time_is_told_by_what_is_beside_it(tmp_path, version, turned, caplog):
    caplog.set_level("INFO")
    rng = np.random.default_rng(0)
    counts, velocity = rng.poisson(1.0, (60, 40)), rng.normal(size=(60, 2))
    sides = (counts.T, velocity.T) if turned else (counts, velocity)
    variables = {"spikes": sides[0], "handVel": sides[1], "time": 12.59 + 0.05 * np.arange(60.0)[None]}
    recording = load(save(tmp_path / "a.mat", variables, version))
    np.testing.assert_array_equal(recording.counts, counts)
    np.testing.assert_array_equal(recording.behaviour, velocity)
    assert recording.bin_width_s == 0.05
    assert f"the {'second' if turned else 'first'} side is taken as time: as long as handVel" in caplog.text


def test_what_is_known_of_each_channel_is_no_time_and_no_behaviour(tmp_path, caplog):
    caplog.set_level("INFO")
    counts, ids = np.random.default_rng(0).poisson(1.0, (6, 500)), np.arange(6.0)[:, None]
    recording = load(save(tmp_path / "a.mat", {"spikes": counts, "channel_ids": ids, "dt": 0.02}, "5"))
    np.testing.assert_array_equal(recording.counts, counts.T)
    assert recording.behaviour is None
    assert "the second side is taken as time: far longer than the other" in caplog.text
    few = {"spikes": counts, "time": 0.02 * np.arange(6.0)}  # many channels, and it is said
    assert load(save(tmp_path / "b.mat", few, "5")).counts.shape == (6, 500)


@pytest.mark.parametrize("step", [1, 20])
def test_milliseconds_are_not_taken_for_seconds(tmp_path, step):
    variables = {"spikes": np.ones((60, 4)), "time": step * np.arange(60.0)}
    path = save(tmp_path / "a.mat", variables, "5")
    refused(path, f"if they are ms, it is {step / 1000:g}: say it with --bin-width")
    assert load(path, step / 1000).bin_width_s == step / 1000


def test_a_width_that_is_no_whole_millisecond_is_taken_from_the_times(tmp_path):
    thirtieth = save(tmp_path / "a.mat", {"spikes": np.ones((60, 4)), "time": np.arange(60.0) / 30}, "5")
    assert load(thirtieth).bin_width_s == pytest.approx(1 / 30, rel=1e-9)
    times = 0.05 * (np.arange(60.0) + 0.3 * (np.arange(60) == 30))
    refused(save(tmp_path / "b.mat", {"spikes": np.ones((60, 4)), "time": times}, "5"), "not one step apart")


def test_a_matrix_alone_must_be_long_to_be_told(tmp_path):
    assert load(save(tmp_path / "a.mat", {"spikes": np.ones((4, 400)), "dt": 0.02}, "5")).counts.shape == (400, 4)
    refused(save(tmp_path / "b.mat", {"spikes": np.ones((40, 60)), "dt": 0.02}, "5"), "40 x 60: which side is time")
    irregular = {"spikes": np.ones((4, 60)), "time": np.arange(60.0) ** 2}
    refused(save(tmp_path / "c.mat", irregular, "5"), "not one step apart")


def test_what_is_no_recording_is_listed(tmp_path):
    refused(save(tmp_path / "a.mat", {"x": np.ones((3, 3)), "y": "text"}, "5"), "found x, y")
    refused(save(tmp_path / "b.mat", {"spikes": "text"}, "5"), "'spikes' is str: a matrix of counts is needed")
    mixed = trials()
    mixed[2]["bin_size"] = 0.02
    refused(save(tmp_path / "c.mat", {"trial_data": mixed}, "5"), "bins are of different width: 0.01, 0.02 s")


def test_a_direction_is_one_of_the_circle_however_large_it_is(tmp_path):
    directions = [1e300, -1e300, -np.pi / 2, 5 * np.pi]
    path = save(tmp_path / "a.mat", {"trial_data": trials(target_direction=directions)}, "5")
    conditions = load(path).conditions
    assert conditions.tolist()[2:] == [270, 180]
    assert ((conditions >= 0) & (conditions < 360)).all()


@VERSIONS
def test_trials_that_do_not_fit_one_another_are_refused(tmp_path, version):
    wide = trials()
    wide[2]["vel"] = np.zeros((12, 3))
    path = save(tmp_path / "a.mat", {"trial_data": wide}, version)
    refused(path, "vel has 2 columns in the first trial and 3 in trial 3: make them equal")
    assert load(path, behaviour="pos").counts.shape == (46, 3)
    wide[1]["M1_spikes"] = np.zeros((11, 5))
    refused(save(tmp_path / "b.mat", {"trial_data": wide}, version), "counts has 3 columns in .* and 5 in trial 2")
    long = trials(areas=("M1", "PMd"))
    long[3]["PMd_spikes"] = np.zeros((9, 4))
    refused(save(tmp_path / "c.mat", {"trial_data": long}, version), r"\(M1_spikes 13, PMd_spikes 9\)")


@VERSIONS
def test_behaviour_is_taken_though_a_trial_is_one_bin_long(tmp_path, version):
    rows = trials()
    rows[0] |= {name: rows[0][name][:1] for name in ("M1_spikes", "vel", "pos")}
    recording = load(save(tmp_path / "a.mat", {"trial_data": rows}, version))
    np.testing.assert_array_equal(recording.behaviour, np.concatenate([row["vel"] for row in rows]))
    assert recording.segments.tolist()[:2] == [[0, 1], [1, 12]]


def test_sparse_counts_are_refused_by_name(tmp_path):
    counts = csc_matrix(np.eye(400, 4))
    savemat(tmp_path / "a.mat", {"spikes": counts})
    save_v73(tmp_path / "b.mat", {"dt": 0.02})
    with h5py.File(tmp_path / "b.mat", "r+") as file:  # as MATLAB keeps one
        group = file.create_group("spikes")
        group.attrs["MATLAB_class"], group.attrs["MATLAB_sparse"] = np.bytes_("double"), np.uint64(400)
        group["data"], group["ir"], group["jc"] = counts.data, counts.indices, counts.indptr
    for name in ("a.mat", "b.mat"):
        refused(tmp_path / name, "'spikes' is sparse, .*: a matrix of counts is needed, as full", 0.02)


@pytest.fixture(scope="module", params=["5", "7.3"])
def whole(tmp_path_factory, request):
    path = tmp_path_factory.mktemp("mat") / "a.mat"
    return save(path, {"trial_data": trials()}, request.param).read_bytes()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=3),
    kept=st.just(1.0) | st.floats(0, 1),
)
def test_a_damaged_file_is_read_or_refused_in_one_line(tmp_path, whole, edits, kept):
    data = bytearray(whole[: int(kept * len(whole))])
    for place, value in edits:
        if data:
            data[int(place * len(data))] ^= value
    (tmp_path / "a.mat").write_bytes(data)
    assert read_or_refused_in_one_line(tmp_path / "a.mat")


@pytest.mark.parametrize(
    ("name", "width", "shape", "labels"),
    [
        ("m1_center_out/center_out_data.mat", None, (22263, 84), ("vel_x", "vel_y")),
        ("m1_pursuit_stevenson/m1_stevenson_2011.mat", None, (15536, 171), ("handVel_x", "handVel_y", "handVel_z")),
        ("gpfa_datahigh/ex1_spikecounts.mat", 0.001, (84000, 61), ()),
    ],
)
def test_real_files(name, width, shape, labels):
    if not (DATA / name).is_file():
        pytest.skip(f"{DATA / name}: no such file here; set RTDSAE_DATA to the folder that holds it")
    recording = load(DATA / name, width)
    assert recording.counts.shape == shape
    assert recording.behaviour_labels == labels
    assert recording.bin_width_s == (width or 0.05)
