"""The modeller's verbs, and the mistakes that a new user makes first: one line, exit code 2, nothing half-written."""

import dataclasses
import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from rtdsae import recordings
from rtdsae.cli import main, missing_extra
from rtdsae.cli.offline import exported
from rtdsae.evaluate.metrics import bits_per_spike
from rtdsae.recordings import Recording
from rtdsae.train.latents import modelled_bins, segment_outputs
from rtdsae.train.run import Run
from rtdsae.train.sessions import prepare
from rtdsae.train.windows import Tensors

CONFIG = """\
model: {family: lfads, ic_enc_dim: 6, f_dim: 4, ci_enc_dim: 6, con_dim: 5, z_dim: 2, gen_dim: 9, fac_dim: 4}
window: {anchor_bins: 5, horizon_bins: 15}
fit: {epochs: 2, accelerator: cpu}
"""


def wave(bins=400, neurons=8):
    rng = np.random.default_rng(0)
    state = np.stack([np.sin(np.arange(bins) / 9), np.cos(np.arange(bins) / 9)], 1)
    rates = np.exp(state @ rng.normal(size=(2, neurons)))
    return Recording(rng.poisson(rates), 0.02, behaviour=state, behaviour_labels=("x", "y"), true_rates=rates / 0.02)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a recording, a config, a run and a bundle; and recordings, run and bundle of two sessions."""
    folder = tmp_path_factory.mktemp("home")
    recordings.save(wave(), folder / "wave.h5")
    (folder / "c.yaml").write_text(CONFIG)
    train = ["train", folder / "c.yaml", "--data", folder / "wave.h5", "--out", folder / "run"]
    assert main([str(a) for a in [*train, "--set", "data.heldout_every=4"]]) == 0
    assert main(["export", str(folder / "run"), "--out", str(folder / "bundle")]) == 0
    for name, neurons in (("monday", 8), ("tuesday", 6)):
        recordings.save(wave(neurons=neurons), folder / f"{name}.h5")
    data = [part for name in ("monday", "tuesday") for part in ("--data", folder / f"{name}.h5")]
    train = ["train", folder / "c.yaml", *data, "--out", folder / "two", "--set", "model.readin_dim=3"]
    assert main([str(a) for a in train]) == 0
    assert main(["export", str(folder / "two"), "--out", str(folder / "both")]) == 0
    return folder


@pytest.fixture
def here(home, tmp_path, monkeypatch):
    """A copy of that folder, to break things in, as the working directory."""
    shutil.copytree(home, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def files():
    return sorted(str(path) for path in Path().rglob("*"))


def refused(capsys, *args):
    """Run a verb that has to fail, and return its one line."""
    before = files()
    code = main([str(a) for a in args])
    said = capsys.readouterr()
    assert code == 2
    assert said.err.count("\n") == 1, said.err
    assert said.err.startswith("rtdsae")
    assert files() == before
    return said.err


def edit(path, name, value):
    with h5py.File(path, "a") as file:
        if name in file:
            del file[name]
        if value is not None:
            file[name] = value


def counts_with(value):
    def broken():
        counts = wave().counts.astype(float)
        counts[7, 3] = value
        edit("wave.h5", "counts", counts)

    return broken


def truncated(path):
    return lambda: Path(path).write_bytes(Path(path).read_bytes()[: Path(path).stat().st_size // 2])


def as_text(path, text):
    return lambda: Path(path).write_text(text)


def other_data():
    """Other counts under the path that the run was trained on."""
    recordings.save(dataclasses.replace(wave(), counts=wave().counts[::-1]), "wave.h5")
    config = Path("run/config.yaml")
    config.write_text(re.sub(r"path: .*", "path: wave.h5", config.read_text()))


def save(name, **changes):
    return lambda: recordings.save(dataclasses.replace(wave(), **changes), name)


TRAIN = ("train", "c.yaml", "--data", "wave.h5", "--out", "new")
SESSIONS = (*TRAIN, "--set", "model.readin_dim=3", "--data")


@pytest.mark.parametrize(
    ("spoil", "args", "said"),
    [
        (None, ("train",), "the command names no recording: give --data PATH"),
        (None, ("train", "nowhere.yaml"), "no config at nowhere.yaml"),
        (None, ("train", "lfads.yaml", "--data", "nowhere.h5"), "nowhere.h5: no such file"),  # a shipped one
        (None, ("train", "wave.h5"), "a recording goes with --data"),
        (None, ("train", "c.yaml"), "names no recording: give --data"),
        (None, ("train", "c.yaml", "--data", "nowhere.h5"), "nowhere.h5: no such file"),
        (None, ("train", "c.yaml", "--data", "c.yaml"), "neither HDF5 nor npz"),
        (None, (*TRAIN, "--epochs", "3"), "--epochs"),
        (None, (*TRAIN, "--set", "fit.epoch=3"), "c.yaml and --set: Object contains unknown field `epoch`"),
        (None, (*TRAIN, "--set", "fit.epoch=3"), "did you mean `epochs`?"),
        (None, ("train", "configs/lfads.yaml", "--data", "nowhere.h5"), "nowhere.h5: no such file"),
        (None, (*TRAIN, "--set", "window.horizon_bins=500"), "no train segment holds a window of 505 bins"),
        (None, ("train", "c.yaml", "--data", "wave.h5", "--out", "run"), "run exists: choose another --out"),
        (None, (*TRAIN, "--resume"), "is not a run"),
        (None, (*TRAIN, "--set", "fit.accelerator=abacus"), "abacus"),
        (None, (*TRAIN, "--set", "fit.precision=17"), "fit.precision"),
        (None, (*TRAIN, "--set", "fit.seed=99999999999"), "fit.seed"),
        (None, (*TRAIN, "--set", "data.valid=0"), "set data.valid above 0"),
        (None, (*TRAIN, "--set", "data.heldout_every=9"), "holds out none of 8 neurons"),
        (counts_with(np.nan), TRAIN, "not finite at bin 7, column 3"),
        (counts_with(-1), TRAIN, "negative"),
        (lambda: edit("wave.h5", "counts", np.zeros(9)), TRAIN, "shape (9,)"),
        (lambda: edit("wave.h5", "behaviour", np.zeros((9, 2))), TRAIN, "behaviour has 9 bins"),
        (lambda: edit("wave.h5", "counts", None), TRAIN, "neither 'counts'"),
        (truncated("wave.h5"), TRAIN, "wave.h5"),
        (None, (*TRAIN, "--data", "monday.h5"), "several sessions need model.readin_dim above 0"),
        (None, (*SESSIONS, "nowhere.h5"), "nowhere.h5: no such file"),
        (None, (*SESSIONS, "wave.h5"), "two recordings are of the session 'wave'"),
        (truncated("monday.h5"), (*SESSIONS, "monday.h5"), "monday.h5"),
        (save("other.h5", bin_width_s=0.01), (*SESSIONS, "other.h5"), "other.h5 has bin_width_s 0.01, wave.h5 has"),
        (
            save("other.h5", behaviour_labels=("y", "x")),
            (*SESSIONS, "other.h5"),
            "other.h5 has behaviour_labels ('y', 'x'), wave.h5 has ('x', 'y')",
        ),
        (
            save("other.h5", external=np.ones((400, 2))),
            (*SESSIONS, "other.h5"),
            "other.h5 has external_labels ('external0', 'external1'), wave.h5 has ()",
        ),
        (
            lambda: recordings.save(wave(bins=30), "other.h5"),
            (*SESSIONS, "other.h5"),
            "segment holds a window of 20 bins",
        ),
    ],
)
def test_train(here, capsys, spoil, args, said):
    if spoil:
        spoil()
    assert said in refused(capsys, *args)


@pytest.mark.parametrize(
    ("spoil", "args", "said"),
    [
        (None, ("evaluate",), "Missing"),
        (None, ("evaluate", "nowhere"), "nowhere is not a run"),
        (None, ("evaluate", "bundle"), "bundle is not a run: it has no run.json"),
        (None, ("evaluate", "wave.h5"), "wave.h5 is not a run: it is a file"),
        (None, ("evaluate", "run", "--data", "nowhere.h5"), "nowhere.h5: no such file"),
        (None, ("evaluate", "run", "--jsn"), "--jsn"),
        (lambda: Path("run/best.pt").unlink(), ("evaluate", "run"), "no best.pt"),
        (
            lambda: recordings.save(dataclasses.replace(wave(), external=np.ones((400, 2))), "other.h5"),
            ("evaluate", "run", "--data", "other.h5"),
            "has the external inputs",
        ),
        (other_data, ("evaluate", "run"), "is not what run was trained on any more"),
        (truncated("run/best.pt"), ("evaluate", "run"), "best.pt is damaged"),
        (truncated("run/run.json"), ("evaluate", "run"), "damaged"),
        (
            as_text("run/config.yaml", "model: {family: lfads, gen_dmi: 3}"),
            ("evaluate", "run"),
            "did you mean `gen_dim`",
        ),
        (lambda: Path("wave.h5").write_text("text"), ("evaluate", "run", "--data", "wave.h5"), "neither HDF5 nor npz"),
        (
            lambda: recordings.save(wave(neurons=5), "other.h5"),
            ("evaluate", "run", "--data", "other.h5"),
            "has 5 neurons",
        ),
        (
            lambda: recordings.save(dataclasses.replace(wave(), bin_width_s=0.01), "other.h5"),
            ("evaluate", "run", "--data", "other.h5"),
            "bins of 0.01 s",
        ),
        (
            lambda: recordings.save(wave(bins=5), "other.h5"),
            ("evaluate", "run", "--data", "other.h5"),
            "has 6 bins or more",
        ),
        (None, ("evaluate", "two", "--session"), "--session"),
        (None, ("evaluate", "two", "--session", "sunday"), "two has no session 'sunday': it has monday, tuesday"),
        (None, ("evaluate", "run", "--session", "monday"), "run has no session 'monday': it has wave"),
        (
            None,
            ("evaluate", "two", "--session", "monday", "--data", "tuesday.h5"),
            "tuesday.h5 has 6 neurons (ch0, ...), not those that two was trained on (8: ch0, ...)",
        ),
        (
            lambda: recordings.save(wave(neurons=5), "other.h5"),
            ("evaluate", "two", "--data", "other.h5"),
            "other.h5 has the neurons of no session of two: fit it first with rtdsae calibrate",
        ),
    ],
)
def test_evaluate(here, capsys, spoil, args, said):
    if spoil:
        spoil()
    assert said in refused(capsys, *args)


@pytest.mark.parametrize(
    ("spoil", "args", "said"),
    [
        (None, ("export",), "Missing"),
        (None, ("export", "run"), "--out"),
        (None, ("export", "nowhere", "--out", "b"), "nowhere is not a run"),
        (None, ("export", "bundle", "--out", "b"), "bundle is not a run"),
        (None, ("export", "run", "--out", "bundle"), "bundle exists: choose another --out, or replace it"),
        (None, ("export", "run", "--out", "run", "--overwrite"), "run"),
        (None, ("export", "run", "--out", "b", "--lanes", "0"), "--lanes 0"),
        (None, ("export", "run", "--out", "b", "--lanes", "two"), "--lanes"),
        (lambda: Path("run/best.pt").unlink(), ("export", "run", "--out", "b"), "no best.pt"),
        (truncated("run/best.pt"), ("export", "run", "--out", "b"), "best.pt is damaged"),
        (truncated("run/sample.npz"), ("export", "run", "--out", "b"), "sample.npz"),
        (
            as_text("run/config.yaml", CONFIG.replace("gen_dim: 9", "gen_dim: 8")),
            ("export", "run", "--out", "b"),
            "config.yaml is not the one that the weights were trained with",
        ),
        (
            as_text("run/config.yaml", CONFIG.replace("ic_enc_dim", "causal: false, ic_enc_dim")),
            ("export", "run", "--out", "b"),
            "acausal reference",
        ),
    ],
)
def test_export(here, capsys, spoil, args, said):
    if spoil:
        spoil()
    assert said in refused(capsys, *args)


CALIBRATE = ("calibrate", "both", "--data", "wave.h5", "--out", "new")


@pytest.mark.parametrize(
    ("spoil", "args", "said"),
    [
        (None, ("calibrate",), "Missing"),
        (None, ("calibrate", "both", "--out", "new"), "--data"),
        (None, ("calibrate", "both", "--data", "wave.h5"), "--out"),
        (None, (*CALIBRATE, "--epochs", "3"), "--epochs"),
        (None, ("calibrate", "nowhere", *CALIBRATE[2:]), "nowhere: no such folder, and no shipped bundle of that name"),
        (None, ("calibrate", "wave.h5", *CALIBRATE[2:]), "wave.h5: is a file: a bundle is a folder"),
        (None, (*CALIBRATE, "--data", "nowhere.h5"), "nowhere.h5: no such file"),
        (None, (*CALIBRATE, "--data", "c.yaml"), "neither HDF5 nor npz"),
        (None, ("calibrate", "bundle", *CALIBRATE[2:]), "bundle was trained without common inputs"),
        (None, ("calibrate", "run", *CALIBRATE[2:]), "calibrate: run was trained without common inputs"),
        (None, (*CALIBRATE, "--session", "tuesday"), "both has a session 'tuesday' already: choose another name"),
        (None, (*CALIBRATE, "--data", "tuesday.h5"), "both has a session 'tuesday' already: choose another name"),
        (None, (*CALIBRATE, "--session", "a/b"), "--session 'a/b': a name is letters"),
        (None, (*CALIBRATE, "--out", "my bundle"), "--out 'my bundle': a name is letters"),
        (None, (*CALIBRATE, "--out", "bundle"), "bundle: exists already: choose another name, or replace it with --o"),
        (None, (*CALIBRATE, "--out", "run", "--overwrite"), "run: exists and is not a bundle, so it is not replaced"),
        (None, (*CALIBRATE, "--set", "model.gen_dim=3"), "--set model.gen_dim=3: a calibration leaves the model"),
        (None, (*CALIBRATE, "--set", "fit.epoch=3"), "did you mean `epochs`?"),
        (None, (*CALIBRATE, "--set", "fit.accelerator=abacus"), "abacus"),
        (None, (*CALIBRATE, "--set", "data.valid=0"), "set data.valid above 0"),
        (None, (*CALIBRATE, "--set", "objective.cv_mask=0.1"), "a calibration trains on all entries"),
        (None, (*CALIBRATE, "--set", "data.heldout_every=9"), "holds out none of 8 neurons"),
        (counts_with(np.nan), CALIBRATE, "not finite at bin 7, column 3"),
        (save("wave.h5", bin_width_s=0.01), CALIBRATE, "wave.h5 has bins of 0.01 s, the model 0.02 s"),
        (save("wave.h5", external=np.ones((400, 1))), CALIBRATE, "wave.h5 has the external inputs ['external0']"),
        (lambda: recordings.save(wave(bins=30), "wave.h5"), CALIBRATE, "segment holds a window of 20 bins"),
        (lambda: Path("both/weights.npz").unlink(), CALIBRATE, "weights.npz: is missing"),
        (truncated("both/weights.npz"), CALIBRATE, "weights.npz: is not the file that the manifest describes"),
        (truncated("both/sessions/tuesday/step.onnx"), CALIBRATE, "sessions/tuesday/step.onnx"),
        (lambda: Path("two/best.pt").unlink(), ("calibrate", "two", *CALIBRATE[2:]), "no best.pt"),
        (truncated("two/sample.npz"), ("calibrate", "two", *CALIBRATE[2:]), "sample.npz"),
    ],
)
def test_calibrate(here, capsys, spoil, args, said):
    if spoil:
        spoil()
    assert said in refused(capsys, *args)


def test_a_calibration_that_has_no_place_is_refused_before_its_run_is_exported(tmp_path, capsys):
    """The export takes a minute; here there is no run to export, which would be said first."""
    (tmp_path / "run.json").touch()
    assert "exists already" in refused(capsys, "calibrate", tmp_path, "--data", "day.h5", "--out", tmp_path)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--data", "nowhere.h5"), "nowhere.h5: no such file"),
        (("--data", "c.yaml"), "neither HDF5 nor npz"),
        (("--data", "tuesday.h5"), "two has a session 'tuesday' already"),
        (("--data", "wave.h5", "--session", "a/b"), "--session 'a/b': a name is letters"),
        (("--data", "wave.h5", "--set", "data.valid=0"), "set data.valid above 0"),
    ],
)
def test_a_mistake_in_a_calibration_is_told_before_its_run_is_exported(here, capsys, monkeypatch, args, said):
    monkeypatch.setattr("rtdsae.train.export.export", lambda *_: pytest.fail("exported"))
    assert said in refused(capsys, "calibrate", "two", *args, "--out", "new")


def test_a_calibration_that_gains_nothing_says_so(here, capsys):
    assert main([*CALIBRATE, "--set", "fit.epochs=1", "--set", "fit.learning_rate=10"]) == 0
    assert "no epoch was better than the beginning, which is kept: give more data" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("spoil", "args", "said"),
    [
        (None, ("inspect",), "Missing"),
        (None, ("inspect", "nowhere"), "nowhere"),
        (None, ("inspect", "run"), "run"),
        (None, ("inspect", "wave.h5"), "wave.h5"),
        (None, ("inspect", "bundle", "--jsn"), "--jsn"),
        (lambda: Path("bundle/step.onnx").unlink(), ("inspect", "bundle"), "step.onnx"),
        (truncated("bundle/step.onnx"), ("inspect", "bundle"), "step.onnx"),
        (truncated("bundle/golden.npz"), ("inspect", "bundle"), "golden.npz"),
        (truncated("bundle/manifest.json"), ("inspect", "bundle"), "manifest.json"),
        (as_text("bundle/MODEL_CARD.md", "mine"), ("inspect", "bundle"), "MODEL_CARD.md"),
        (as_text("bundle/manifest.json", '{"format": 99}'), ("inspect", "bundle"), "upgrade rtdsae"),
        (lambda: shutil.rmtree("both/sessions"), ("inspect", "both"), "sessions: is missing or no folder"),
        (truncated("both/sessions/tuesday/golden.npz"), ("inspect", "both"), "sessions/tuesday/golden.npz"),
        (as_text("both/sessions/tuesday/note.txt", "mine"), ("inspect", "both"), "'sessions/tuesday/note.txt' is no"),
    ],
)
def test_inspect(here, capsys, spoil, args, said):
    if spoil:
        spoil()
    assert said in refused(capsys, *args)


def test_evaluate_reports_scores_and_draws_figures(here, capsys):
    assert main(["evaluate", "run", "--json"]) == 0
    scores = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert scores["part"] == "test"
    assert scores["method"].startswith("streamed")
    assert scores["bins"] == 80 - 5
    assert set(scores["r2_behaviour"]) == {"mean", "x", "y"}
    run, recording = Run.open(Path("run")), prepare(wave(), Run.open(Path("run")).config)
    segments = recording.segments[recording.splits == "test"]
    rates = segment_outputs(run.model(), Tensors(recording), segments)["rates"] * 0.02
    counts = recording.counts[modelled_bins(segments, 5)]
    assert scores["co_bps"] == pytest.approx(bits_per_spike(rates[:, [3, 7]], counts[:, [3, 7]]))
    seen = [0, 1, 2, 4, 5, 6]
    assert scores["bps"] == pytest.approx(bits_per_spike(rates[:, seen], counts[:, seen]))
    assert set(scores["null_models"]) == {"bps", "co_bps", "r2_behaviour", "r2_true_rates"}
    drawn = [path for path in (here / "run" / "figures").iterdir() if path.suffix == ".png"]
    assert len(drawn) >= 3
    info = json.loads((here / "run" / "run.json").read_text())
    assert info["scores"]["co_bps"] == scores["co_bps"]
    (session,) = info["sessions"]
    assert session["name"] == scores["session"] == "wave"
    assert (session["channels"], session["neurons"]) == ([f"ch{i}" for i in seen], [f"ch{i}" for i in range(8)])


@pytest.mark.slow
def test_the_card_says_which_part_was_scored(here):
    for split, said in (("0.2", "on the test part"), ("0", "on the validation part, which also selected the epoch")):
        assert main(["train", "c.yaml", "--data", "wave.h5", "--out", f"r{split}", "--set", f"data.test={split}"]) == 0
        assert main(["evaluate", f"r{split}"]) == 0
        assert main(["export", f"r{split}", "--out", f"b{split}"]) == 0
        assert said in Path(f"b{split}/MODEL_CARD.md").read_text()


def test_what_cannot_be_scored_is_null_with_the_reason(here, capsys):
    plain = dataclasses.replace(wave(), behaviour=None, behaviour_labels=(), true_rates=None)
    recordings.save(plain, "plain.h5")
    assert main(["train", "c.yaml", "--data", "plain.h5", "--out", "plain"]) == 0
    assert main(["evaluate", "plain", "--json"]) == 0
    scores = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [scores[name] for name in ("co_bps", "r2_behaviour", "r2_true_rates")] == [None, None, None]
    of_latents = {f"latents.{name}" for name, value in scores["latents"].items() if value is None}
    assert {"latents.tangling", "latents.probe_z_series", "latents.mig"} <= of_latents
    of_oracle = {"oracle", "fraction_of_oracle"}
    assert set(scores["reasons"]) == {"co_bps", "r2_behaviour", "r2_true_rates"} | of_oracle | of_latents


def test_two_sessions_are_scored_each_by_itself_and_by_their_mean(here, capsys):
    assert main(["evaluate", "two", "--json"]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(said) == ["sessions"]
    assert list(said["sessions"]) == ["monday", "tuesday"]
    run = Run.open(Path("two"))
    for i, (name, scores) in enumerate(said["sessions"].items()):
        recording = prepare(recordings.load(f"{name}.h5"), run.config)
        segments = recording.segments[recording.splits == "test"]
        rates = segment_outputs(run.model().use(i), Tensors(recording), segments)["rates"] * 0.02
        expected = bits_per_spike(rates, recording.counts[modelled_bins(segments, 5)])
        assert scores["bps"] == pytest.approx(expected)
        assert (scores["session"], scores["part"]) == (name, "test")
        assert (here / "two" / "figures" / name / "rates.png").exists()
    kept = json.loads((here / "two" / "run.json").read_text())["scores"]
    assert kept["bps"] == pytest.approx(np.mean([scores["bps"] for scores in said["sessions"].values()]))


@pytest.mark.slow
def test_one_of_two_sessions_is_scored_alone(here, capsys):
    assert main(["evaluate", "two", "--session", "tuesday", "--json"]) == 0
    scores = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (scores["session"], scores["part"]) == ("tuesday", "test")
    assert [path.name for path in (here / "two" / "figures").iterdir()] == ["tuesday"]
    assert "scores" not in json.loads((here / "two" / "run.json").read_text())
    assert main(["evaluate", "two", "--data", "tuesday.h5"]) == 0  # its neurons tell which it is
    assert capsys.readouterr().out.startswith("tuesday: 395 bins of the whole part")


def test_another_recording_is_scored_whole_with_the_same_neurons_held_out(here, capsys):
    recordings.save(wave(bins=300), "other.h5")
    assert main(["evaluate", "run", "--data", "other.h5", "--json"]) == 0
    scores = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (scores["part"], scores["bins"]) == ("whole", 295)
    assert isinstance(scores["co_bps"], float)
    (figures,) = (here / "run" / "figures").glob("other-*")
    assert (figures / "rates.png").exists()
    assert "scores" not in json.loads((here / "run" / "run.json").read_text())


def test_behaviour_of_another_name_is_not_scored_under_the_models(here, capsys):
    recordings.save(dataclasses.replace(wave(), behaviour_labels=("y", "x")), "other.h5")
    assert main(["evaluate", "run", "--data", "other.h5", "--json"]) == 0
    scores = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert scores["r2_behaviour"] is None
    assert scores["reasons"]["r2_behaviour"] == "the model decodes x, y, not y, x"


def test_a_score_that_is_no_number_is_null(here, capsys):
    recordings.save(dataclasses.replace(wave(), counts=0 * wave().counts), "other.h5")
    assert main(["evaluate", "run", "--data", "other.h5", "--json"]) == 0
    scores = json.loads(capsys.readouterr().out.splitlines()[-1], parse_constant=pytest.fail)
    assert scores["bps"] is None
    assert "no spike" in scores["reasons"]["bps"]


def test_inspect_tells_what_is_in_it(here, capsys):
    assert main(["inspect", "bundle"]) == 0
    said = capsys.readouterr().out
    assert "lfads, intact" in said
    assert "anchored on S = 5 bins, trained for R = 15 more" in said
    assert main(["inspect", "bundle", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["anchor_bins"] == 5


def test_inspect_tells_the_sessions(here, capsys):
    assert main(["inspect", "both"]) == 0
    said = capsys.readouterr().out
    assert "session monday" in said.splitlines()[0]
    assert "  input      8 channels (ch0 ... ch7)" in said
    assert "  session    tuesday: 6 channels" in said
    assert main(["inspect", "both", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["sessions"] == ["monday", "tuesday"]
    assert [session["name"] for session in told["further"]] == ["tuesday"]


def test_resume_by_the_command_line(here, capsys):
    resume = ["train", "c.yaml", "--data", "wave.h5", "--out", "run", "--resume", "--set", "fit.epochs=4"]
    assert "begun with data.heldout_every=4, not 0" in refused(capsys, *resume)
    assert main([*resume, "--set", "data.heldout_every=4"]) == 0
    assert "finished after 4 epochs" in capsys.readouterr().out


def test_a_run_that_another_torch_goes_on_with_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    recordings.save(wave(), Path("wave.h5"))
    Path("c.yaml").write_text(CONFIG)
    train = ["train", "c.yaml", "--data", "wave.h5", "--out", "run"]
    assert main(train) == 0
    assert "trained by torch" not in capsys.readouterr().out
    run = Run.open(Path("run"))
    run.info["versions"]["torch"] = "1.0"
    run.save_info()
    assert main([*train, "--resume"]) == 0
    assert f"trained by torch 1.0 and then {torch.__version__}: by one alone" in capsys.readouterr().out


def test_what_ends_without_a_usable_epoch_has_failed(here, capsys):
    assert main([*TRAIN, "--set", "fit.epochs=1", "--set", "fit.learning_rate=.inf"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("rtdsae train: finished after 1 epochs, nothing to export yet")
    assert "lower fit.learning_rate" in said


def test_what_is_chosen_is_said_but_for_what_is_given(here, capsys):
    given = ("--set", "fit.epochs=1", "--set", "model.gen_dim=8")
    assert main(["train", "--data", "wave.h5", "--out", "chosen", *given]) == 0
    keys = {line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("  ")}
    assert "window.anchor_bins" in keys
    assert not {"fit.epochs", "model.gen_dim"} & keys


def test_a_run_of_any_name_can_be_calibrated(here, capsys):
    shutil.copytree("run", "réc ording")
    assert exported(Run.open(Path("réc ording"))).manifest.family == "lfads"
    assert "bündle: a bundle's name must be letters" in refused(capsys, "export", "run", "--out", "bündle")


def test_a_run_is_scored_where_it_was_begun(here, capsys, monkeypatch, tmp_path):
    assert main([*TRAIN, "--set", "fit.epochs=1"]) == 0
    capsys.readouterr()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    said = refused(capsys, "evaluate", here / "new")
    assert "wave.h5: no such file;" in said
    assert f"mend data.path in {here / 'new' / 'config.yaml'}" in said
    assert "is not a run" in refused(capsys, "evaluate", here / "wave.h5")


def test_help_fits_a_screen_and_usage_errors_are_one_line():
    for verb in ("train", "evaluate", "export", "calibrate", "inspect", "serve", "listen", "simulate", "replay"):
        helped = subprocess.run(
            [sys.executable, "-m", "rtdsae", verb, "--help"], capture_output=True, text=True, check=True
        )
        assert helped.stdout.count("\n") <= 50, verb
    for args, said in (([], "usage: rtdsae VERB"), (["--help"], "usage: rtdsae VERB"), (["--version"], "rtdsae 0.1.0")):
        helped = subprocess.run([sys.executable, "-m", "rtdsae", *args], capture_output=True, text=True, check=True)
        assert said in helped.stdout
    wrong = subprocess.run([sys.executable, "-m", "rtdsae", "fly"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("rtdsae: there is no verb 'fly'; the verbs are demo, train,")


def test_a_module_that_is_not_installed_is_told_by_the_extra_that_brings_it():
    for verb, module, extra in (
        ("serve", "pylsl", "serve"),
        ("train", "torch", "train"),
        ("convert", "pynwb.spec", "io"),
        ("demo", "pylsl", "train"),
        ("demo", "pynwb", "io"),
        ("search", "onnx", "search"),
    ):
        said = missing_extra(ModuleNotFoundError(name=module), [verb])
        assert said.endswith(f"of rtdsae's extra [{extra}]: pip install 'rtdsae[{extra}]'"), verb


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this computer")
@pytest.mark.parametrize("args", [["--version"], ["--help"], ["keys", "--help"], ["completion", "bash"]])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_a_full_disk_does_not_take_is_one_line(args, unbuffered, monkeypatch):
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    with Path("/dev/full").open("w") as full:
        said = subprocess.run(
            [sys.executable, "-m", "rtdsae", *args], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert said.returncode == 2
    assert said.stderr.splitlines() == [
        f"rtdsae{'' if args[0].startswith('-') else f' {args[0]}'}: a file, or the output: No space left on device"
    ]


@pytest.mark.slow
def test_ctrl_c_leaves_a_usable_run(here):
    train = [*TRAIN, "--set", "fit.epochs=100000", "--set", "fit.patience=100000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "rtdsae", *train], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for line in process.stderr:
        if line.startswith("epoch"):
            break
    process.send_signal(signal.SIGINT)
    said, wrong = process.communicate(timeout=60)
    assert (process.returncode, wrong.count("Traceback")) == (0, 0)
    assert "interrupted after" in said
    assert main(["evaluate", "new"]) == 0


def test_sessions_that_share_no_conditions_are_said_to(here, capsys):
    assert main([*SESSIONS, "monday.h5", "--set", "fit.epochs=1"]) == 0
    assert "the sessions share no two conditions" in capsys.readouterr().out
