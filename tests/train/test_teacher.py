"""A model taught by an acausal run: what it is shown, what stays with the recorded spikes, and what is refused."""

import json
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_fit import FAMILIES, assert_equal, config, fit, interrupt_after, recording, weights

from rtdsae import bundle, recordings
from rtdsae.cli import main
from rtdsae.errors import ConfigError, TrainingError
from rtdsae.model.families import make_family
from rtdsae.recordings import Recording
from rtdsae.train.choose import choose
from rtdsae.train.config import Objective, calibration_config, make_config
from rtdsae.train.objective import valid_scores
from rtdsae.train.run import Run
from rtdsae.train.sessions import dims_of, prepare
from rtdsae.train.teacher import Teacher, shares
from rtdsae.train.windows import SessionWindows, Tensors, Windows

S, R = 5, 15
PLAIN = Objective(coordinated_dropout=0.0, gap_rate=0.0, ramp_epochs=2)


def acausal(family="lfads", **parts):
    return config(msgspec.structs.replace(FAMILIES[family], causal=False), **parts)


def taught(teacher, family="lfads", **parts):
    c = config(FAMILIES[family], **{"objective": PLAIN, **parts})
    return msgspec.structs.replace(c, data=msgspec.structs.replace(c.data, teacher=str(teacher)))


def windows(config, data=None, index=0):
    return SessionWindows(Tensors(prepare(data or recording(), config)), S + R, R, [], index=index)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    path = tmp_path_factory.mktemp("teacher") / "run"
    fit(path, acausal(heldout_every=4, epochs=60, learning_rate=2e-2))
    return path


@pytest.fixture(scope="module")
def session(teacher):
    """A session's training windows, with what the teacher makes of them."""
    c = taught(teacher, heldout_every=4)
    made = windows(c)
    Teacher(c, [made.tensors.recording]).teach([made], torch.device("cpu"))
    return made


# what is shown --------------------------------------------------------------------------------------------------------


def test_what_is_expected_is_nearer_to_the_truth_than_the_spikes(session):
    trained = np.concatenate([np.arange(a, b) for a, b in session.train.segments])
    expected, counts = session.expected.float().numpy(), session.tensors.counts.float().numpy()
    assert expected.shape == counts.shape
    assert (expected[trained] > 0).all()
    assert not np.delete(expected, trained, 0).any()  # of no other bin
    root = np.sqrt(recording().true_rates * 0.02)[trained]
    errors = [np.square(np.sqrt(x[trained]) - root).mean() for x in (expected, counts)]
    assert errors[0] < 0.3 * errors[1]


def test_a_bin_is_as_the_teacher_has_it_in_a_window_around_it(teacher, session):
    model, (a, b) = Run.open(teacher).model(), session.train.segments[0].tolist()
    first = torch.tensor([a, a + 10, b - S - R])
    batch = session.tensors.windows_at(first, S + R)
    with torch.no_grad():
        x = model.readin.normalise(batch.inputs)
        rates = model(x, torch.ones_like(x[..., :1]), None, False).outputs.rates * 0.02
    parts = [(0, slice(0, 15)), (1, slice(5, 15)), (2, slice(12, 20))]
    for i, part in parts:
        bins = slice(int(first[i]) + part.start, int(first[i]) + part.stop)
        torch.testing.assert_close(session.expected[bins].float(), rates[i, part], rtol=1e-3, atol=1e-6)


def test_spikes_are_drawn_anew_and_the_targets_are_what_they_are_drawn_from(session):
    first = torch.tensor([3, 40])
    batch = session.training_batch(first)
    again = session.training_batch(first)
    index = first[:, None] + torch.arange(S + R)
    torch.testing.assert_close(batch.counts, session.expected[index].float())
    assert torch.equal(batch.counts, again.counts)
    assert not torch.equal(batch.inputs, again.inputs)
    assert torch.equal(batch.inputs, batch.inputs.round())
    many = torch.stack([session.training_batch(first).inputs for _ in range(4000)])
    mean = batch.counts[..., session.tensors.heldin]
    torch.testing.assert_close(many.mean(0), mean, atol=0.15, rtol=0.05)
    torch.testing.assert_close(many.var(0).mean(), mean.mean(), atol=0, rtol=0.02)  # a Poisson's


def test_without_a_teacher_they_are_as_recorded():
    session = windows(config())
    batch, recorded = session.training_batch(torch.tensor([3])), session.tensors.windows_at(torch.tensor([3]), S + R)
    assert torch.equal(batch.counts, recorded.counts)
    assert torch.equal(batch.inputs, recorded.inputs)


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=6),
    bins=st.integers(1, 25),
)
def test_each_bin_is_taken_once_from_the_window_whose_middle_is_nearest(lengths, bins):
    lengths = [*lengths, bins]
    ends = np.cumsum(lengths)
    segments = np.stack([ends - lengths, ends], 1)
    chosen = Windows(Recording(np.zeros((ends[-1], 1)), 0.02, segments=segments), "train", bins, 1)
    firsts, parts = shares(chosen, bins)
    taken = np.concatenate([np.arange(a, b) for a, b in parts.tolist()])
    np.testing.assert_array_equal(taken, np.concatenate([np.arange(a, b) for a, b in chosen.segments]))
    for first, (a, b) in zip(firsts.tolist(), parts.tolist(), strict=True):
        assert first <= a <= b <= first + bins
        inside = [(x, y) for x, y in chosen.segments.tolist() if x <= first < y]
        others = [f for f in firsts.tolist() if inside[0][0] <= f < inside[0][1]]
        for t in range(a, b):
            far = [abs(2 * t + 1 - 2 * f - bins) for f in others]
            assert abs(2 * t + 1 - 2 * first - bins) <= min(far) + 1


# a training -----------------------------------------------------------------------------------------------------------


def test_the_validation_is_of_recorded_spikes_and_the_model_learns(teacher, tmp_path):
    seen = []
    c = taught(teacher, heldout_every=4, epochs=40)
    run = fit(tmp_path / "run", c, seen.append)
    first, best = seen[0].metrics, seen[run.info["best_epoch"]].metrics
    assert best["valid/nll_heldout"] < first["valid/nll_heldout"] - 0.02
    assert run.info["behaviour_fit"]["r2_valid"] > 0.3
    recorded = valid_scores(run.model(), [windows(c)], 8, torch.device("cpu"))
    assert recorded["nll_heldout"] == pytest.approx(run.info["best_score"], abs=1e-5)
    saved = Run.open(run.path)
    assert (saved.config.data.teacher, len(saved.info["teacher"])) == (str(teacher), 64)


def test_a_student_of_the_teachers_sizes_begins_with_its_weights(tmp_path):
    both = [recording(i, neurons=6, session=f"day{i}") for i in range(2)]
    model = msgspec.structs.replace(FAMILIES["lfads"], causal=False, readin_dim=4)
    fit(tmp_path / "teacher", config(model, path=("a.h5", "b.h5"), epochs=2), data=both)
    known = Run.open(tmp_path / "teacher").model().state_dict()

    def begun(**changes):
        """What of the teacher's weights a new student has, and what it has of its own."""
        student = msgspec.structs.replace(model, causal=True, **changes)
        c = msgspec.structs.replace(taught(tmp_path / "teacher"), model=student)
        family = make_family(student, dims_of([both[1]], c))
        before = {name: value.clone() for name, value in family.state_dict().items()}
        Teacher(c, [prepare(both[1], c)]).hand_on(family)
        theirs = {name: known[name.replace("sessions.0", "sessions.1")] for name in before}
        taken = {n for n, value in family.state_dict().items() if torch.equal(value, theirs[n])}
        return taken, {n for n, value in family.state_dict().items() if torch.equal(value, before[n])}

    taken, own = begun(dropout=0.3)
    assert taken > {"gen.cell.weight_h", "ic.head.linear.weight", "sessions.0.readout.linear.weight"}
    assert {n for n in own if n not in taken} == {"con.weight_x"}
    assert not begun(gen_dim=9)[0] & {"ic.head.linear.weight", "sessions.0.readout.linear.weight"}

    still = taught(tmp_path / "teacher", path=("a.h5", "b.h5"), epochs=1, learning_rate=1e-12)
    trained = fit(
        tmp_path / "student",
        msgspec.structs.replace(still, model=msgspec.structs.replace(model, causal=True)),
        data=both,
    )
    assert torch.allclose(trained.model().state_dict()["gen.cell.weight_h"], known["gen.cell.weight_h"], atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_teaches_and_is_taught(family, tmp_path):
    fit(tmp_path / "teacher", acausal(family, epochs=1))
    for student in {family, "dsae_full"}:
        run = fit(tmp_path / f"taught-{student}", taught(tmp_path / "teacher", student, epochs=1))
        assert (run.info["state"], run.info["best_epoch"]) == ("finished", 0)


def test_a_teacher_of_two_sessions_teaches_one_of_them(tmp_path):
    both = [recording(i, neurons=6 + i, session=f"day{i}") for i in range(2)]
    model = msgspec.structs.replace(FAMILIES["lfads"], causal=False, readin_dim=4)
    fit(tmp_path / "teacher", config(model, path=("a.h5", "b.h5"), epochs=2), data=both)
    c = taught(tmp_path / "teacher", epochs=1)
    assert fit(tmp_path / "student", c, data=both[1]).info["state"] == "finished"
    made = windows(c, both[1])
    Teacher(c, [made.tensors.recording]).teach([made], torch.device("cpu"))
    assert made.expected.shape[1] == 7


def test_it_is_gone_on_with_bit_for_bit_wherever_the_teacher_is_by_then(teacher, tmp_path):
    c = taught(teacher, heldout_every=4, shards=2)
    whole = fit(tmp_path / "whole", c)
    fit(tmp_path / "parts", c, interrupt_after(2))
    shutil.copytree(teacher, tmp_path / "moved")
    resumed = fit(tmp_path / "parts", taught(tmp_path / "moved", heldout_every=4, shards=2), resume=True)
    assert_equal(weights(whole), weights(resumed))
    assert Run.open(resumed.path).config.data.teacher == str(tmp_path / "moved")


@pytest.mark.parametrize("other", ["another", "none"])
def test_it_is_not_gone_on_with_by_another_teacher(teacher, tmp_path, other):
    fit(tmp_path / "run", taught(teacher, heldout_every=4), interrupt_after(1))
    before = (tmp_path / "run/run.json").read_bytes()
    c = config(objective=PLAIN, heldout_every=4)
    if other == "another":
        fit(tmp_path / "another", acausal(heldout_every=4, epochs=1, seed=1))
        c = taught(tmp_path / "another", heldout_every=4)
    with pytest.raises(TrainingError, match=rf"was begun with another teacher than .*: .* data.teacher={teacher}"):
        fit(tmp_path / "run", c, resume=True)
    assert (tmp_path / "run/run.json").read_bytes() == before


# what is refused ------------------------------------------------------------------------------------------------------


def test_a_teacher_that_cannot_teach_is_refused_and_nothing_is_left_behind(teacher, tmp_path):
    fit(tmp_path / "causal", config(epochs=1))
    gaussian = msgspec.structs.replace(FAMILIES["lfads"], causal=False, reconstruction="gaussian")
    fit(tmp_path / "gaussian", config(gaussian, epochs=1))
    longer = acausal(epochs=1)
    longer = msgspec.structs.replace(longer, window=msgspec.structs.replace(longer.window, horizon_bins=R + 1))
    fit(tmp_path / "longer", longer)
    shutil.copytree(teacher, tmp_path / "cut")
    cut = torch.load(tmp_path / "cut/best.pt", weights_only=True)
    torch.save(cut | {"finished": False}, tmp_path / "cut/best.pt")
    shutil.copytree(teacher, tmp_path / "begun", ignore=shutil.ignore_patterns("best.pt"))
    mistakes = [
        (taught(tmp_path / "nowhere"), TrainingError, "data.teacher: .*nowhere is not a run: there is no such folder"),
        (taught(tmp_path / "causal"), ConfigError, "is causal and knows no more than its student: train it with"),
        (taught(tmp_path / "gaussian"), ConfigError, "has gaussian counts: a teacher's are poisson"),
        (taught(tmp_path / "longer"), ConfigError, "has windows of 21 bins, this training of 20"),
        (taught(teacher), ConfigError, "with other parts of it kept apart: data.valid"),
        (taught(tmp_path / "cut", heldout_every=4), TrainingError, "was cut off before"),
        (taught(tmp_path / "begun", heldout_every=4), TrainingError, "has no best.pt: no epoch of it was finished"),
    ]
    for c, kind, said in mistakes:
        with pytest.raises(kind, match=said):
            fit(tmp_path / "student", c)
        assert not (tmp_path / "student").exists()
    with pytest.raises(ConfigError, match=r"was trained on other data than wave.h5"):
        fit(tmp_path / "student", taught(teacher, heldout_every=4), data=recording(seed=1))


@pytest.mark.parametrize("key", ["cv_mask=0.1", "spike_jitter_bins=2", "shift_bins=1"])
def test_what_alters_recorded_spikes_does_not_go_with_it(key):
    with pytest.raises(ConfigError, match=r"is of recorded spikes, and data.teacher trains on none"):
        make_config({"model": {"family": "lfads"}, "objective": {}}, "c", (f"objective.{key}", "data.teacher=run"), ())


def test_the_student_is_of_counts_as_well():
    with pytest.raises(ConfigError, match=r"draws Poisson spikes: set model.reconstruction: poisson"):
        make_config(
            {"model": {"family": "lfads"}}, "c", ("model.reconstruction=negative_binomial", "data.teacher=run"), ()
        )


def test_a_calibration_of_what_was_taught_is_by_recorded_spikes():
    tree = {"model": {"family": "lfads"}, "objective": {"coordinated_dropout": 0.0}, "data": {"teacher": "run"}}
    found = calibration_config(tree, (), "new.h5", "bundle")
    assert (found.data.teacher, found.objective.coordinated_dropout) == ("", 0.5)
    assert calibration_config(tree | {"data": {}}, (), "new.h5", "bundle").objective.coordinated_dropout == 0
    with pytest.raises(ConfigError, match="is by recorded spikes and has no teacher"):
        calibration_config(tree, ("data.teacher=run",), "new.h5", "bundle")


# for who writes no configuration --------------------------------------------------------------------------------------


def test_a_teacher_and_its_student_are_of_one_size():
    c = make_config({"model": {"family": "lfads"}}, "c", (), ("wave.h5",))
    made = [prepare(recording(), c)]
    teacher, student = (
        {one.key: one.value for one in choose(made, "lfads", taught, causal) if one.key.startswith("model.")}
        for taught, causal in ((False, False), (True, True))
    )
    assert teacher | {"model.dropout": 0} == student | {"model.dropout": 0}
    assert student["model.gen_dim"] > {one.key: one.value for one in choose(made)}["model.gen_dim"]


def test_with_a_teacher_less_is_held_down():
    firsts = 60 * np.arange(300)
    trials = recording(bins=18_000, segments=np.stack([firsts, firsts + 60], 1), conditions=np.arange(300) % 2)
    c = make_config({"model": {"family": "lfads"}}, "c", (), ("wave.h5",))
    alone, with_one = (
        {one.key: one.value for one in choose([prepare(trials, c)], "lfads", taught)} for taught in (False, True)
    )
    assert alone["objective.coordinated_dropout"] > with_one["objective.coordinated_dropout"] == 0
    assert alone["model.dropout"] > with_one["model.dropout"]
    assert alone["model.gen_dim"] < with_one["model.gen_dim"]
    assert alone["fit.epochs"] < with_one["fit.epochs"]
    assert "objective.l2_gen" in alone
    assert "objective.l2_gen" not in with_one


def test_two_commands_train_a_teacher_and_its_student(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    recordings.save(recording(session="day"), "day.h5")
    small = [f"--set={one}" for one in ("model.gen_dim=9", "fit.epochs=2", "fit.accelerator=cpu")]
    assert main(["train", "--data", "day.h5", *small, "--set", "model.causal=false", "--out", "teacher"]) == 0
    assert main(["train", "--data", "day.h5", *small, "--set", "data.teacher=teacher", "--out", "student"]) == 0
    assert "spikes are drawn from the teacher's rates" in capsys.readouterr().out
    assert main(["train", "--data", "day.h5", *small, "--set", "data.teacher=teecher", "--out", "other"]) == 2
    assert "data.teacher: teecher is not a run: there is no such folder" in capsys.readouterr().err
    other = [*small, "--set", "data.teacher=teacher", "--set", "model.family=fdmm", "--out", "fdmm"]
    assert main(["train", "--data", "day.h5", *other]) == 0
    assert main(["train", "--data", "day.h5", *small, "--out", "student", "--resume"]) == 2
    assert "with another teacher than none: resume with data.teacher=teacher" in capsys.readouterr().err
    assert main(["evaluate", "student"]) == 0
    assert "whose likelihood does not compare" in Path("student/report.html").read_text()
    assert main(["export", "student", "--out", "bundle"]) == 0
    assert main(["runs", "--json", "."]) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["runs"]
    hash = bundle.load(Path("bundle")).manifest.provenance["teacher"]
    by_run = {Path(row["run"]).name: row["config"]["data.teacher"] for row in rows}
    assert by_run == {"teacher": "", "student": hash[:8], "fdmm": hash[:8]}
    assert f"Taught by the acausal run of the weights `{hash[:16]}`" in Path("bundle/MODEL_CARD.md").read_text()
