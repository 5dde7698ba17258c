"""Runs found, compared and listed."""

import dataclasses
import json
import shutil

import pytest
from test_fit import FAMILIES, config, fit, interrupt_after, recording, two

import rtdsae
from rtdsae.cli import main
from rtdsae.errors import ConfigError, TrainingError
from rtdsae.train.run import Run
from rtdsae.train.runs import compare, find


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Three runs, one of another family, and a damaged one."""
    folder = tmp_path_factory.mktemp("runs")
    fit(folder / "long", config(epochs=4))
    fit(folder / "some" / "short", config(epochs=4, learning_rate=1e-5), interrupt_after(0))
    fit(folder / "other", config(FAMILIES["fdmm"], epochs=1))
    (folder / "damaged").mkdir()
    (folder / "damaged" / "run.json").write_text("{")
    return folder


def test_runs_are_found_wherever_they_are_and_a_damaged_one_is_named(home):
    runs, damaged = find([home, home / "long"])
    assert sorted(run.path.name for run in runs) == ["long", "other", "short"]
    assert len(damaged) == 1
    assert "damaged" in damaged[0]


def test_what_ray_keeps_of_a_search_is_no_run(home, tmp_path):
    shutil.copytree(home / "long", tmp_path / "trials" / "000")
    shutil.copytree(home / "long", tmp_path / "ray" / "Trial_0" / "checkpoint_000000")
    assert [run.path for run in find([tmp_path])[0]] == [tmp_path / "trials" / "000"]


def test_they_are_compared_by_score_and_by_the_settings_that_differ(home):
    rows = {row["run"].rpartition("/")[2]: row for row in compare(find([home])[0])}
    assert [row["score"] for row in rows.values()] == sorted(row["score"] for row in rows.values())
    assert (rows["short"]["state"], rows["short"]["epochs"], rows["short"]["best_epoch"]) == ("interrupted", 1, 1)
    assert rows["long"]["state"] == "finished"
    assert rows["short"]["config"]["fit.learning_rate"] == 1e-5
    assert rows["other"]["config"].keys() == {"fit.epochs", "fit.learning_rate"} | {
        key for key in rows["other"]["config"] if key.startswith("model.")
    }
    assert "objective.kl_z_scale" not in rows["long"]["config"]  # all have the same
    assert "model.con_dim" not in rows["other"]["config"]  # it has none
    (lone,) = compare([run for run in find([home])[0] if run.path.name == "long"])
    assert lone["config"] == {}


def test_a_run_of_another_version_that_cannot_be_read_says_which(home, tmp_path):
    run = Run.open(shutil.copytree(home / "long", tmp_path / "run"))
    run.info["versions"]["rtdsae"] = "9.8.7"
    run.info["dims"]["bins_of_anchor"] = run.info["dims"].pop("anchor_bins")
    run.save_info()
    mend = rf"; it was trained by rtdsae 9\.8\.7, and this is {rtdsae.__version__}: read it with 9\.8\.7$"
    with pytest.raises(TrainingError, match=rf"^{run.path}/run.json: dims: .*`anchor_bins`{mend}"):
        Run.open(run.path).build()
    with pytest.raises(TrainingError, match=mend):
        dataclasses.replace(run, info=run.info | {"dims": vars(Run.open(home / "long").dims)}).restore({})
    with (run.path / "config.yaml").open("a") as file:
        file.write("warp: {speed: 9}\n")
    with pytest.raises(ConfigError, match=rf"^{run.path}/config.yaml: .*unknown field `warp`.*{mend}"):
        Run.open(run.path)


def test_runs_of_other_sessions_are_of_other_data(tmp_path):
    """Though they share the first."""
    monday, tuesday, friday = (recording(seed, session=f"day{seed}") for seed in range(3))
    for name, data in {"a": [monday, tuesday], "b": [monday, friday], "c": [tuesday, monday]}.items():
        fit(tmp_path / name, two(epochs=1), data=data)
    fit(tmp_path / "d", config(epochs=1), data=monday)
    a, b, c, d = (row["data"] for row in sorted(compare(find([tmp_path])[0]), key=lambda row: row["run"]))
    assert (a == c, len({a, b, d})) == (True, 3)
    assert d == Run.open(tmp_path / "d").data_hashes[0][:8]


def test_the_verb_lists_them(home, capsys):
    assert main(["runs", str(home)]) == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert lines[0].split()[:4] == ["run", "family", "data", "state"]
    assert len(lines) == 4
    assert "fit.learning_rate=1e-05" in next(line for line in lines if "short" in line)
    assert "damaged" in said.err
    assert main(["runs", str(home), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["runs"]) == 3
    assert len(found["damaged"]) == 1


def test_no_run_is_said(tmp_path, capsys):
    assert main(["runs", str(tmp_path)]) == 2
    assert "no run in" in capsys.readouterr().err
    with pytest.raises(TrainingError, match="no such folder"):
        find([tmp_path / "nowhere"])
