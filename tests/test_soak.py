"""Two minutes of `./tools/soak`: a source, a daemon and subscribers, with faults at random; and what its checks see."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soak
from soak_checks import ARRAYS, EventsCheck, Life, RegularCheck
from soak_parts import GOOD, NAN, record_type
from toy_bundle import Lanes, Toy

from rtdsae.wire import Flags, Latents

SOAK = Path(__file__).parent.parent / "tools" / "soak.py"
SOON_S = 30.0
N_FAULTS = 20  # each at least once, which takes 20 to 30 s


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("kind", "anchor"), [("counts", "swapped"), ("samples", "every"), ("events", "lanes")])
def test_minutes_of_faults_break_no_promise(kind, anchor):
    command = [sys.executable, SOAK, "--minutes", "0.6", "--seed", "1", "--input", kind, "--anchor", anchor]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    report = json.loads(done.stdout.splitlines()[-1])
    assert (report["problems"], done.returncode) == ([], 0), done.stderr
    assert report["bins"] > 1500
    assert report["daemons"] > 1
    assert len(report["faults"]) == N_FAULTS


def test_a_soak_that_is_ended_leaves_no_process_and_no_folder(tmp_path):
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, SOAK], env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert "bins" in process.stdout.readline()
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert len(children) == 4
        process.terminate()
        assert process.wait(SOON_S) == 130
    end = time.monotonic() + SOON_S
    while any(os.path.exists(f"/proc/{child}") for child in children):
        assert time.monotonic() < end
        time.sleep(0.01)
    assert not list(tmp_path.iterdir())


def test_of_a_daemon_that_did_not_start_there_is_a_report(tmp_path):
    nothing = soak.Soak(tmp_path, "counts", 100.0, seed=0)
    nothing.lives.append(Life(since=0))
    nothing.problem("it ended with 2")
    report = nothing.report()
    assert (report["bins"], len(report["problems"]), report["skipped_checks"]) == (0, 1, 0)
    json.dumps(report)


RATE, WIDTH = 100.0, 8  # of the checkers' own tests: bins a second, values of a bin
TOYS = {0: Toy(), 1: Toy(seed=1)}


def frames_of(times, gaps=(), schema_ids=None, anchored=()):
    """Bins of zeros that were published when they ended."""
    ids = np.zeros(len(times), int) if schema_ids is None else schema_ids
    swapped = [i for i in range(1, len(times)) if ids[i] != ids[i - 1]]
    flags = [
        Flags.GAP * (i in gaps) | Flags.ANCHORED * (i in anchored) | Flags.SWAPPED * (i in swapped)
        for i in range(len(times))
    ]
    zeros = np.zeros(WIDTH, np.float32)
    return [
        Latents(Flags(f), 7, i, i, t, t, t, ids[i], zeros) for i, (f, t) in enumerate(zip(flags, times, strict=True))
    ]


def samples_of(stamps, kinds=0, heard=True, epoch=0):
    """What a source pushed, at the times of the stamps."""
    kind = record_type(WIDTH)
    samples = np.zeros(len(stamps), [*((name, *kind.fields[name][:1]) for name in kind.names), ("epoch", "i4")])
    samples["stamp"] = samples["pushed"] = stamps
    samples["kind"], samples["heard"], samples["epoch"] = kinds, heard, epoch
    return samples


def problems_of(check, frames, samples=None, k=1, **life):
    """What a check says of a life."""
    samples, found = samples_of([0.0]) if samples is None else samples, []
    life = {"since": 0, "status": {"stream": {"unread": 0}}} | life
    facts = Life(until=len(samples), told=len(samples), frames=frames, **life), samples, RATE, TOYS, found.append
    checker = EventsCheck(*facts) if check == "check_gaps" else RegularCheck(k, *facts)
    if check == "check_epoch":
        binned = np.zeros(len(samples), bool)
        for last in checker.last_slots:
            binned[checker.slots[last - k + 1 : last + 1]] = True
        checker.check_epoch(0, binned, np.zeros(len(samples), bool))
    else:
        getattr(checker, check)()
    return found


def test_a_bin_is_swapped_where_the_model_is_another():
    right = frames_of(np.arange(10) / RATE, schema_ids=[0] * 4 + [1] * 6)
    assert not problems_of("check_swaps", right)
    for i, flags in ((4, Flags.ANCHORED), (7, Flags.ANCHORED | Flags.SWAPPED)):
        wrong = [*right[:i], dataclasses.replace(right[i], flags=flags), *right[i + 1 :]]
        assert problems_of("check_swaps", wrong)


def lanes_of(x, observed, asked_for=None, **how):
    """Values and flags of the bins after the first S, in two lanes, which are anchored anew for the bin `asked_for`."""
    toy = Toy(lanes=2)
    parts = [Lanes.run(toy, x[: None if asked_for is None else asked_for + toy.n_anchor], observed, **how)]
    if asked_for is not None:
        parts.append(Lanes.run(toy, x[asked_for:], observed[asked_for:], **how))
    values = np.concatenate([np.concatenate([outs[name] for name in ARRAYS[1:]], axis=1) for outs, _ in parts])
    flags = np.where(observed[toy.n_anchor :], 0, Flags.GAP)
    flags[[*parts[0][1], *(asked_for + t for part in parts[1:] for t in part[1])]] |= Flags.ANCHORED
    return np.concatenate([x[toy.n_anchor :], values], axis=1), flags


def problems_of_lanes(values, flags, asked=(), **told):
    times = np.arange(len(flags)) / RATE
    frames = [
        Latents(Flags(int(f)), 7, i, i, t, t, t, 0, v)
        for i, (f, t, v) in enumerate(zip(flags, times, values, strict=True))
    ]
    found = []
    life = Life(0, 0, 0, frames=frames, asked=list(asked), **told)
    EventsCheck(life, samples_of([0.0]), RATE, {0: Toy(lanes=2)}, found.append).check_values()
    return found


def test_lanes_are_anchored_in_turn_and_when_it_is_asked_for():
    x, observed = Toy().counts(155), np.ones(155)
    observed[87:92], x[87:92] = 0, 0  # of what is published 82 to 86: the anchor that is due for 85 comes for 92
    values, flags = lanes_of(x, observed)
    assert np.flatnonzero(flags & Flags.ANCHORED).tolist() == [0, 17, 34, 51, 68, 92, 109, 126, 143]
    assert not problems_of_lanes(values, flags)
    for wrong, right in ((0, 51), (52, 51), (85, 92), (93, 92), (60, None)):
        moved = flags.copy()
        if right is not None:
            moved[right] &= ~Flags.ANCHORED
        moved[wrong] |= Flags.ANCHORED
        assert problems_of_lanes(values, moved)
    asked_for, request = 60, [(59.2 / RATE, 59.4 / RATE)]
    assert problems_of_lanes(values, flags, request)  # and it was not followed
    values, flags = lanes_of(x, observed, asked_for)
    assert not problems_of_lanes(values, flags, request)
    assert problems_of_lanes(values, flags)


def test_an_anchor_that_is_asked_for_as_a_lane_is_due_may_be_late_for_it():
    x, observed = Toy().counts(105), np.ones(105)
    about_bin_51 = [(50.5 / RATE, 51.5 / RATE)]
    for bin_, right in ((51, True), (52, True), (53, True), (54, False)):
        assert (problems_of_lanes(*lanes_of(x, observed, bin_), about_bin_51) == []) == right


@pytest.mark.parametrize(
    ("anchor", "anchored"), [("once", [60]), ("every", [35, 60, 95, 130]), (None, [17, 34, 51, 60, 77, 94])]
)
def test_values_are_as_the_daemon_was_told_to_anchor_and_to_look_ahead(anchor, anchored):
    x, about_bin_60 = Toy().counts(155), [(59.2 / RATE, 59.4 / RATE)]
    values, flags = lanes_of(x, np.ones(155), 60, anchor=anchor, ahead=3)
    assert np.flatnonzero(flags & Flags.ANCHORED)[1:].tolist()[: len(anchored)] == anchored
    assert not problems_of_lanes(values, flags, about_bin_60, anchor=anchor, ahead=3)
    assert problems_of_lanes(values, flags, about_bin_60, anchor=anchor, ahead=2)
    for other in {"once", "every", None} - {anchor}:
        assert problems_of_lanes(values, flags, about_bin_60, anchor=other, ahead=3)


def test_lanes_that_are_all_anchored_in_the_turn_of_one_are_seen(monkeypatch):
    x, observed, in_turn = Toy().counts(105), np.ones(105), Lanes.with_turn_taken

    def all_in_turn(lanes, window):
        return dataclasses.replace(in_turn(lanes, window), states=Lanes.anchored(lanes.toy, window).states)

    with monkeypatch.context() as broken:
        broken.setattr(Lanes, "with_turn_taken", all_in_turn)
        values, flags = lanes_of(x, observed)
    assert "is not what the model gives" in problems_of_lanes(values, flags)[0]


def test_gaps_are_as_many_as_their_time_and_come_when_they_are_due():
    times = np.arange(20) / RATE
    late = times + 0.4 / RATE * (np.arange(20) >= 10)  # a source that came back, not in step
    reset = times - 5.0 * (np.arange(20) >= 10)
    assert not problems_of("check_times", frames_of(times, gaps=(8, 9)))
    assert not problems_of("check_times", frames_of(late, gaps=(8, 9)))
    assert not problems_of("check_times", frames_of(reset, gaps=(9,)))
    assert problems_of("check_times", frames_of(np.delete(times, 8), gaps=(7,)))
    assert problems_of("check_times", frames_of(times - 0.9 / RATE * (np.arange(20) == 8), gaps=(8,)))
    assert problems_of("check_times", frames_of(reset))


@pytest.mark.parametrize("k", [1, 10])
def test_a_gap_is_excused_only_where_a_sample_is_missing_or_bad(k):
    stamps = (np.arange(20 * k) + 1) / k / RATE
    frames = frames_of(stamps[k - 1 :: k], gaps=(12,))
    bad = np.where(np.arange(20 * k) == 12 * k, NAN, GOOD)
    assert not problems_of("check_epoch", frames, samples_of(stamps, bad), k)
    assert not problems_of("check_epoch", frames, samples_of(np.delete(stamps, 12 * k)), k)
    assert problems_of("check_epoch", frames, samples_of(stamps), k)


def jittered(n, k=1):
    """When samples are stamped, k a bin, and when their bins end."""
    stamps = (np.arange(n * k) + 1 + np.random.default_rng(0).uniform(-0.1, 0.1, n * k)) / k / RATE
    return stamps, stamps[k - 1 :: k]


@pytest.mark.parametrize("k", [1, 10])
def test_a_clock_that_was_measured_wrong_is_found_by_its_samples(k):
    stamps, times = jittered(60, k)
    clock = np.where(np.arange(60) < 40, 0.0312, 0.0012)
    uneven = np.arange(60) / RATE + 0.04 * (np.arange(60) % 2)
    frames = frames_of(times + clock)
    assert "the statuses say 0.0000" in problems_of("check_clock", frames, samples_of(stamps), k, offsets=[0.0])[0]
    assert "is taken to be off by 0.0312 s" in problems_of("check_clock", frames, samples_of(stamps), k)[0]
    frames = [dataclasses.replace(frame, t_in=t) for frame, t in zip(frames, uneven, strict=True)]
    for check in ("check_clock", "check_epoch"):
        assert not problems_of(check, frames, samples_of(stamps), k)
    for i in (0, 30):  # which is not in time with the samples
        frames[i] = dataclasses.replace(frames[i], t_bin=frames[i].t_bin + 0.0003)
        assert "samples were not pushed for it" in problems_of("check_bins", frames, samples_of(stamps), k)[0]
        assert not problems_of("before", frames, samples_of(stamps), k)  # nor is it known then


def test_what_was_pushed_to_a_daemon_that_was_killed_is_not_missed_by_the_next():
    stamps, times = jittered(60)
    ended, begun = np.arange(60) < 30, np.arange(60) >= 50
    frames = frames_of(times[50:])
    for heard, right in ((ended | begun, True), (ended | begun | (np.arange(60) // 2 == 20), False)):
        assert (problems_of("check_epoch", frames, samples_of(stamps, heard=heard), since=10) == []) == right
    assert "lost before" in problems_of("check_epoch", frames, samples_of(stamps, heard=ended | begun))[0]


def test_what_a_daemon_that_is_killed_takes_with_it_is_as_much_as_it_was_behind():
    stamps, times = jittered(200)
    for n, behind, right in ((190, 0.0, True), (150, 0.0, False), (150, 0.4, True), (100, 0.4, False)):
        frames = [dataclasses.replace(frame, t_in=frame.t_in + behind) for frame in frames_of(times[:n])]
        assert (problems_of("check_epoch", frames, samples_of(stamps)) == []) == right


def test_what_came_before_a_model_could_be_anchored_is_not_missed():
    stamps, times = jittered(60)
    for first, right in ((5, False), (15, True)):
        frames = [dataclasses.replace(frame, bin=first + frame.bin) for frame in frames_of(times[10:])]
        assert (problems_of("check_epoch", frames, samples_of(stamps)) == []) == right


def test_what_is_dropped_before_a_daemon_that_is_ten_seconds_behind_is_excused():
    stamps, times = jittered(60)
    for behind, right in ((0.1, False), (8.0, False), (9.9, True)):
        frames = [dataclasses.replace(frame, t_in=frame.t_in + behind) for frame in frames_of(times, gaps=(20, 21))]
        assert (problems_of("check_epoch", frames, samples_of(stamps)) == []) == right


def test_what_is_not_checked_of_a_daemon_that_is_ten_seconds_behind_is_counted():
    stamps, times = jittered(60)
    for behind, killed, skipped in ((0.1, True, 0), (9.9, True, 1), (9.9, False, 2)):
        frames = [dataclasses.replace(frame, t_in=frame.t_in + behind) for frame in frames_of(times)]
        samples, status = samples_of(stamps), {"stream": {"unread": 0}}
        life = Life(since=0, until=60, told=60, frames=frames, killed=killed, status=status)
        check = RegularCheck(1, life, samples, RATE, TOYS, [].append)
        check.n_channels = WIDTH
        check.check_bins()
        assert check.skipped == skipped


def test_bins_of_spikes_are_gaps_while_none_come():
    pushed, times = np.arange(0.0, 12.0, 0.005), np.arange(0.1, 11.9, 1 / RATE)
    samples = samples_of(pushed[(pushed < 3.0) | (pushed > 6.0)])
    silent = (times > 4.0) & (times < 6.0)  # from a second after the last spike
    for gaps, right in (
        (silent, True),
        (silent & (times < 5.0), False),
        (silent | (np.abs(times - 9.0) < 0.5 / RATE), False),
    ):
        assert (problems_of("check_gaps", frames_of(times, np.flatnonzero(gaps)), samples) == []) == right


def test_a_bin_of_which_spikes_were_pushed_to_nobody_is_a_gap():
    stamps, times = np.arange(0.0, 1.0, 0.002), np.arange(0.1, 0.9, 1 / RATE)
    away, told = np.flatnonzero((times > 0.301) & (times < 0.561)), []
    for gaps, right in ((away, True), (away[:-1], False), (away[1:], False)):
        life = Life(0, 0, 0, frames=frames_of(times, gaps))
        check = EventsCheck(life, samples_of([0.0]), RATE, TOYS, told.append)
        check.check_unheard(slice(0, len(times)), stamps[(stamps > 0.3) & (stamps < 0.555)])
        assert (told == []) == right
        told.clear()


def test_what_the_last_status_says_is_what_was_seen():
    frames = frames_of(np.arange(300) / RATE, anchored=(0, 20))
    status = {
        "run": 7, "bundle": "toy", "latency_us": {"p50": 0.0, "max": 0.0}, "anchors": 2, "stream": {"losses": 1}
    }  # fmt: skip
    each_second = {"dropped": [(1, 0), (101, 0), (202, 0), (300, 0)], "losses": 1}
    assert not problems_of("check_status", frames, status=status, **each_second)
    for wrong in ({"anchors": 7}, {"anchors": 1}, {"bundle": "other"}, {"run": 8}, {"stream": {"losses": 0}}):
        assert problems_of("check_status", frames, status=status | wrong, **each_second)
    assert problems_of("check_status", frames, status=status | {"latency_us": {"p50": 3.0, "max": 0.0}}, **each_second)
    assert problems_of("check_status", frames, status=status, losses=1, dropped=[(1, 0), (300, 0)])
