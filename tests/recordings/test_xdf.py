"""XDF: the three kinds of input, clocks, several streams; what is damaged is refused in one line."""

import os
from pathlib import Path

import numpy as np
import pytest
from damaged_files import read_or_refused_in_one_line
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from xdf_files import XdfFile, chunk

from rtdsae.bins import EventsBinner, RegularBinner
from rtdsae.errors import RecordingError
from rtdsae.recordings import load, load_original

pytest.importorskip("pyxdf")

DATA = Path(os.environ.get("RTDSAE_DATA") or Path(__file__).parents[2] / ".." / "shared" / "data") / "xdf"
W = 0.02


def counts_of(n, c=3, seed=0):
    return np.random.default_rng(seed).poisson(1.5, (n, c)).astype(np.float32)


def regular(n, period=W, start=100.0, jitter=0.0, seed=0):
    return start + period * (1 + np.arange(n)) + jitter * np.random.default_rng(seed).uniform(-1, 1, n)


def refused(path, says, **choices):
    with pytest.raises(RecordingError, match=says) as caught:
        load(path, **choices)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_counts_come_in_as_they_are(tmp_path):
    counts, stamps = counts_of(50), regular(50, jitter=0.003)
    path = XdfFile().add("array", counts, stamps, rate=50.0, labels="abc", bin_width_s=W).write(tmp_path / "day.xdf")
    recording = load(path)
    np.testing.assert_array_equal(recording.counts, counts)
    assert recording.counts.dtype == np.uint8
    assert (recording.bin_width_s, recording.channels, recording.session) == (W, ("a", "b", "c"), "day")
    assert recording.segments.tolist() == [[0, 50]]
    assert load(path, 0.04).counts.tolist() == (counts[::2] + counts[1::2]).tolist()


@pytest.mark.parametrize("labels", ["aba", ["a", "", "c"], "ab"])
def test_labels_that_do_not_tell_channels_apart_are_not_taken(tmp_path, labels):
    path = XdfFile().add("array", counts_of(50), regular(50), rate=50.0, labels=labels, bin_width_s=W)
    assert load(path.write(tmp_path / "day.xdf")).channels == ("ch0", "ch1", "ch2")


@pytest.mark.parametrize("fmt", ["int8", "int16", "int32", "int64", "float32", "double64"])
def test_samples_of_any_format_are_added_up(tmp_path, fmt):
    samples, stamps = counts_of(200), regular(200, 0.001)
    path = XdfFile().add("array", samples, stamps, rate=1000.0, fmt=fmt).write(tmp_path / "a.xdf")
    np.testing.assert_array_equal(load(path, W).counts, samples.reshape(10, 20, 3).sum(axis=1))


def test_samples_without_a_stamp_follow_the_last_at_the_nominal_rate(tmp_path):
    stamped = np.arange(60) % 9 == 0
    path = tmp_path / "a.xdf"
    XdfFile().add("array", counts_of(60), regular(60), rate=50.0, stamped=stamped, per_chunk=4).write(path)
    np.testing.assert_allclose(load_original(path).stamps, regular(60), atol=1e-9)


def test_spikes_are_binned_as_the_daemon_bins_them(tmp_path):
    rng = np.random.default_rng(1)
    stamps = 10 + np.sort(rng.uniform(0, 8, 3000))
    channels = rng.integers(0, 5, (3000, 1))
    labels = ["e1", "e2", "e3", "e4", "e5", "never"]
    path = XdfFile().add("spikes", channels, stamps, fmt="int16", spike_labels=labels).write(tmp_path / "a.xdf")
    recording = load(path, W)
    assert recording.channels == tuple(labels)
    binner, live = EventsBinner(6, W, 0.002), []
    for at in range(0, 3000, 11):  # as they come from LSL
        live += list(binner.push(channels[at : at + 11], stamps[at : at + 11]).counts.copy())
    np.testing.assert_array_equal(recording.counts[: len(live)], live)
    assert len(recording.counts) - len(live) <= 1
    assert recording.segments.tolist() == [[0, recording.n_bins]]


def test_spikes_that_stay_away_are_a_gap_and_not_silence(tmp_path):
    stamps = np.r_[np.arange(0, 5, 0.01), np.arange(15, 20, 0.01)] + 50
    path = XdfFile().add("spikes", np.zeros((1000, 1)), stamps).write(tmp_path / "a.xdf")
    recording = load(path, W)
    assert recording.n_bins == 999 or recording.n_bins == 1000
    (_, first_stop), (second, _) = recording.segments.tolist()
    assert abs(first_stop - (5 + 1.0) / W) <= 1  # the daemon waits a second before it takes them to be away
    assert abs(second - 15 / W) <= 1


def test_gaps_cut_segments_and_a_reset_clock_does_too(tmp_path, caplog):
    stamps = regular(100)
    stamps[40:] += 5 * W  # five samples are missing
    stamps[70:] -= 1000.0  # the source's clock was set back
    recording = load(XdfFile().add("array", counts_of(100), stamps, rate=50.0).write(tmp_path / "a.xdf"), W)
    assert recording.segments.tolist() == [[0, 40], [45, 75], [76, 106]]
    assert "gaps 6" in caplog.text  # and one of the reset
    assert "resets 1" in caplog.text


def test_the_clock_offsets_are_applied(tmp_path):
    seconds = np.arange(0, 60, 5.0)
    offsets = [(100 + t, 7.5 + 1e-4 * t) for t in seconds]  # it drifts
    path = tmp_path / "a.xdf"
    XdfFile().add("array", counts_of(3000), regular(3000), rate=50.0, offsets=offsets).write(path)
    expected = regular(3000) + 7.5 + 1e-4 * (regular(3000) - 100)
    np.testing.assert_allclose(load_original(path).stamps, expected, atol=1e-4)


def with_behaviour(path, **more):
    t = 100 + np.arange(0, 2, 0.005)
    hand = np.stack([np.sin(t), np.cos(t)], axis=1)
    file = XdfFile().add("array", counts_of(90), regular(90), rate=50.0, labels="abc")
    file.add("hand", hand, t, rate=200.0, type="Mocap", labels=["x", "y"], fmt="double64")
    file.add("decoder", counts_of(90), regular(90), rate=50.0, type="Latents")
    file.add("truth", counts_of(90), regular(90), rate=50.0, type="Rates")
    file.add("marks", [["go"], ["stop"]], [100.5, 101.5], type="Markers", fmt="string")
    for name, type_ in more.items():
        file.add(name, counts_of(90), regular(90), rate=50.0, type=type_)
    return file.write(path)


def test_the_neural_stream_is_found_beside_the_daemons_own_and_behaviour_comes_onto_its_bins(tmp_path):
    recording = load(with_behaviour(tmp_path / "a.xdf"), W)
    assert recording.channels == ("a", "b", "c")
    assert recording.behaviour_labels == ("x", "y")
    middles = regular(90) - W / 2
    np.testing.assert_allclose(recording.behaviour[:, 0], np.sin(middles), atol=3e-3)
    assert recording.segments.tolist() == [[0, 90]]
    assert load(tmp_path / "a.xdf", W, behaviour="none").behaviour is None


def test_bins_without_known_behaviour_are_cut_out(tmp_path, caplog):
    t = np.r_[100 + np.arange(0, 0.8, 0.005), 101.2 + np.arange(0, 0.8, 0.005)]
    file = XdfFile().add("array", counts_of(90), regular(90), rate=50.0)
    file.add("hand", t[:, None], t, rate=200.0, type="Mocap").write(tmp_path / "a.xdf")
    recording = load(tmp_path / "a.xdf", W)
    assert recording.segments.tolist() == [[0, 40], [59, 90]]  # a sample with a bin's end for its stamp is that bin's
    assert recording.behaviour_labels == ("hand",)
    assert "hand is not known in 19 of 90 bins: cut out" in caplog.text


def test_several_neural_streams_are_listed_and_one_is_chosen(tmp_path):
    path = with_behaviour(tmp_path / "a.xdf", second="Spikes")
    refused(
        path,
        r"several streams are type=Spikes: choose .* with --stream.*name=array type=Spikes \(3 channels, 50 Hz",
        bin_width_s=W,
    )
    assert load(path, W, stream="name=array").channels == ("a", "b", "c")
    assert load(path, W, stream="second").channels == ("ch0", "ch1", "ch2")
    refused(path, "no stream with samples is name=third", bin_width_s=W, stream="name=third")
    refused(path, "no stream with samples is foot", bin_width_s=W, stream="second", behaviour="foot")


def test_several_behaviours_are_named_and_none_is_taken(tmp_path, caplog):
    path = with_behaviour(tmp_path / "a.xdf", eye="Gaze")
    assert load(path, W).behaviour is None
    assert "hand, eye are there besides: none is taken as behaviour; choose with rtdsae convert --beh" in caplog.text
    assert load(path, W, behaviour="eye").behaviour_labels == ("eye_x", "eye_y", "eye_z")


def test_what_a_file_does_not_say_must_be_said(tmp_path):
    path = XdfFile().add("array", counts_of(50), regular(50), rate=50.0).write(tmp_path / "a.xdf")
    refused(path, r"does not say how wide a bin is: say it with --bin-width")
    refused(path, "do not make whole bins of 0.03 s", bin_width_s=0.03)
    refused(path, "--condition means nothing for XDF", condition="x")
    volts = XdfFile().add("eeg", counts_of(50) - 9, regular(50), rate=50.0, type="EEG").write(tmp_path / "b.xdf")
    refused(volts, "no stream with samples is type=Spikes: choose", bin_width_s=W)
    refused(volts, "no bin of 0.02 s is whole", bin_width_s=W, stream="type=eeg")
    no_channel = XdfFile().add("spikes", np.full((9, 1), 1e6), regular(9)).write(tmp_path / "c.xdf")
    refused(no_channel, "spike of channel 1000000", bin_width_s=W)


def test_a_file_that_was_cut_off_is_read_up_to_there(tmp_path, caplog):
    whole = XdfFile().add("array", counts_of(70), regular(70), rate=50.0)
    content = b"XDF:" + b"".join(whole.chunks[:-2])
    (tmp_path / "a.xdf").write_bytes(content[:-5])
    np.testing.assert_array_equal(load(tmp_path / "a.xdf", W).counts, counts_of(70)[:63])
    assert "cut off" in caplog.text


def test_a_number_that_lies_is_refused_before_it_is_believed(tmp_path):
    path = tmp_path / "a.xdf"
    good = XdfFile().add("array", counts_of(14), regular(14), rate=50.0)
    huge = chunk(3, b"\x01\0\0\0" + b"\x08" + (1 << 40).to_bytes(8, "little") + b"\x08" + bytes(20))
    path.write_bytes(good.bytes() + huge)
    refused(path, "damaged at byte .*: its samples are not as many", bin_width_s=W)
    path.write_bytes(b"XDF:" + good.chunks[0] + good.chunks[2])
    refused(path, "stream 1 was not announced", bin_width_s=W)
    middle = b"XDF:" + good.chunks[0] + b"\x04\xff\xff\xff\x7f" + b"".join(good.chunks[1:])
    path.write_bytes(middle)
    refused(path, "a chunk's length is wrong", bin_width_s=W)


@pytest.fixture(scope="module")
def whole():
    seconds = np.arange(0, 3, 0.5)
    file = XdfFile().add("array", counts_of(100), regular(100), rate=50.0, offsets=[(100 + s, 1.0) for s in seconds])
    file.add("hand", counts_of(100), regular(100), rate=50.0, type="Mocap")
    return file.add("marks", [["go"], ["stop"]], [100.5, 101.5], type="Markers", fmt="string").bytes()


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=4),
    kept=st.sampled_from([1.0, 1.0]) | st.floats(0, 1),
)
def test_a_damaged_file_is_read_or_refused_in_one_line(tmp_path, whole, edits, kept):
    data = bytearray(whole[: max(4, int(kept * len(whole)))])
    for place, value in edits if len(data) > 4 else ():
        data[4 + int(place * (len(data) - 4))] ^= value
    (tmp_path / "a.xdf").write_bytes(data)
    assert read_or_refused_in_one_line(tmp_path / "a.xdf", W)


@pytest.mark.parametrize("chunk_of", [1, 17, 1000])
def test_a_regular_stream_is_binned_as_the_daemon_bins_it(tmp_path, chunk_of):
    rng = np.random.default_rng(3)
    stamps = regular(4000, 0.001, jitter=2e-4)
    lost = (rng.random(4000) < 0.002) | (np.arange(4000) // 300 == 5)
    samples = counts_of(4000)[~lost]
    stamps = stamps[~lost]
    path = XdfFile().add("array", samples, stamps, rate=1000.0).write(tmp_path / "a.xdf")
    recording = load(path, W)
    binner, counts, observed = RegularBinner(3, W, 20), [], []
    for at in range(0, len(stamps), chunk_of):
        bins = binner.push(samples[at : at + chunk_of], stamps[at : at + chunk_of])
        counts += list(bins.counts.copy())
        observed += bins.observed.tolist()
    np.testing.assert_array_equal(recording.counts, counts)
    inside = np.zeros(recording.n_bins, bool)
    for start, stop in recording.segments:
        inside[start:stop] = True
    np.testing.assert_array_equal(inside, observed)


# Real files; see the folder's README. ---------------------------------------------------------------------------------


def the(name):
    if not (DATA / name).is_file():
        pytest.skip(f"{DATA / name}: no such file here; set RTDSAE_DATA to the folder that holds xdf")
    return DATA / name


def test_real_clock_resets_are_cut_and_the_streams_stay_together():
    recording = load(the("clock_resets.xdf"), 0.1, stream="name=BioSemi")
    assert (recording.n_channels, recording.n_segments) == (8, 2)
    stamps = load_original(the("clock_resets.xdf"), stream="name=BioSemi").stamps
    assert stamps[-1] - stamps[0] < 600  # not the 653188 s by which its clock was reset
    assert (np.diff(stamps) > 0).all()


def test_real_minimal():
    recording = load(the("minimal.xdf"), 0.1, stream="name=SendDataC")
    assert recording.counts[:3].tolist() == [[192, 255, 238], [12, 22, 32], [13, 23, 33]]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("chunk_length_lie.xdf", "damaged at byte 64: a chunk of 2 bytes names no stream"),
        ("empty_streams.xdf", "no stream with samples is type=Spikes.*name=Empty data stream.*0 samples"),
    ],
)
def test_real_files_that_cannot_be_read_say_why(name, says):
    refused(the(name), says, bin_width_s=0.1)
