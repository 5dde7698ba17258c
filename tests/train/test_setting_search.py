"""Searches: what a YAML file may ask for, and real ones on Ray, where it is installed."""

import json
import math
import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from computers import Network
from test_fit import recording

from rtdsae import bundle, recordings, shipped
from rtdsae.cli import main
from rtdsae.errors import ConfigError, TrainingError
from rtdsae.train.alone import alone
from rtdsae.train.config import load_config
from rtdsae.train.run import Run
from rtdsae.train.sessions import prepare
from rtdsae.train.space import Range, explore, load_search

BASE = """\
model: {family: lfads, ic_enc_dim: 6, f_dim: 4, ci_enc_dim: 6, con_dim: 5, z_dim: 2, gen_dim: 9, fac_dim: 4}
window: {anchor_bins: 5, horizon_bins: 15}
fit: {accelerator: cpu}
"""
SPACE = {"fit.learning_rate": {"low": 1e-6, "high": 1e-2, "log": True}, "model.dropout": {"low": 0.0, "high": 0.6}}
SMALL = {"base": "c.yaml", "trials": 2, "burn_in_epochs": 1, "generation_epochs": 1, "generations": 2, "concurrent": 2}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(BASE)
    recordings.save(recording(), tmp_path / "wave.h5")
    return tmp_path


def write(folder, **changes):
    path = folder / "s.yaml"
    path.write_text(yaml.safe_dump({**SMALL, "method": "random", "space": SPACE, **changes}))
    return path


# what may be asked for ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method": "guess"}, r"s\.yaml: .*method"),
        ({"base": "d.yaml"}, r"base: no training config at .*d\.yaml"),
        ({"space": {}}, "space is empty"),
        ({"trails": 3}, "trails"),
        ({"trials": 0}, "trials"),
        (
            {"space": {"fit.learning_rat": {"low": 1e-5, "high": 1e-2}}},
            r"learning_rat: the base has no such key",
        ),
        ({"space": {"fit.epochs": {"low": 1, "high": 9}}}, "set burn_in_epochs, generation_epochs and generations"),
        ({"space": {"window.anchor_bins": {"low": 1, "high": 9}}}, "the trials would be scored on other bins"),
        ({"space": {"model.dropout": {"low": 0.5, "high": 0.1}}}, "low 0.5 is not below high 0.1"),
        ({"space": {"model.dropout": {"low": 0.0, "high": 0.5, "log": True}}}, "log needs low above 0"),
        ({"space": {"model.dropout": {"low": 0.0, "high": 3.0}}}, r"dropout"),
        ({"space": {"model.dropout": {"low": 0.1, "high": 0.5, "init": 0.7}}}, "init 0.7 is not between"),
        ({"space": {"model.dropout": {"choices": [0.1]}}}, "one choice is no search"),
        ({"space": {"model.dropout": 0.3}}, r"space"),
        ({"space": {"model.causal": {"choices": [True, False]}}}, "space.model.causal: scores of these do not compare"),
        ({"space": {"model.reconstruction": {"choices": ["poisson", "gaussian"]}}}, "do not compare"),
        ({"space": {"fit.devices": {"choices": [1, 2]}}}, "space.fit.devices: a trial is one process"),
        ({"space": {"fit.batch_size": {"low": 16, "high": 64.5}}}, "fit.batch_size is a whole number"),
        ({"space": {"fit.batch_size": {"low": 16, "high": 64, "init": 20.5}}}, "fit.batch_size is a whole number"),
        ({"method": "pbt", "space": {"model.dropout": {"low": 0.0, "high": 0.5, "init": 0}}}, "0 stays 0"),
        ({"method": "pbt", "space": {"model.dropout": {"low": 0.1, "high": 0.5, "enforce": False}}}, "dropout=inf"),
        ({"method": "pbt", "space": {"model.family": {"choices": ["lfads", "fdmm"]}}}, "use method random or tpe"),
        ({"method": "pbt", "space": {"model.f_prior.variance": {"low": 0.1, "high": 1.0}}}, "among the weights"),
        ({"method": "pbt", "space": {"model.z_prior.tau": {"low": 1.0, "high": 9.0}}}, "among the weights"),
    ],
)
def test_what_cannot_be_searched_is_refused_in_a_line(here, changes, said):
    with pytest.raises(ConfigError, match=said) as caught:
        load_search(write(here, **changes), ("wave.h5",))
    assert "\n" not in str(caught.value)


def test_a_population_of_discriminators_has_one_size(here):
    (here / "c.yaml").write_text(BASE + "objective: {f_objective: {kind: factor_vae}}\n")
    space = {"objective.f_objective.units": {"low": 8, "high": 16}}
    with pytest.raises(ConfigError, match="units: a population hands on weights, whose sizes this changes"):
        load_search(write(here, method="pbt", space=space), ("wave.h5",))
    assert load_search(write(here, space=space), ("wave.h5",)).axes


def test_a_base_of_several_processes_is_refused(here):
    (here / "c.yaml").write_text(BASE.replace("accelerator: cpu", "accelerator: cpu, shards: 2, devices: 2"))
    with pytest.raises(ConfigError, match=r"s\.yaml: a trial is one process: leave fit.devices and fit.nodes"):
        load_search(write(here), ("wave.h5",))


def test_trials_may_be_of_several_families_and_kinds(here):
    space = {
        "model.family": {"choices": ["lfads", "fhvae", "dsae_full"]},
        "model.z_prior.kind": {"choices": ["ar1", "rnn", "tiled"]},
        "objective.f_objective.kind": {"choices": ["beta_vae", "beta_tcvae"]},
        "model.gen_dim": {"low": 8, "high": 20},
    }
    shared = re.sub(r"(ic_enc|ci_enc|con)_dim: \d, ", "", BASE)
    (here / "c.yaml").write_text(shared + "objective: {kl_f_scale: 0.2}\n")
    wanted = load_search(write(here, space=space), ("wave.h5",))
    config = wanted.config({"model.z_prior.kind": "rnn", "model.family": "fhvae", "model.gen_dim": 9})
    assert (config.model.family, config.model.gen_dim, config.objective.kl_f_scale) == ("fhvae", 9, 0.2)
    assert config.model.z_prior.__struct_config__.tag == "rnn"
    assert config.model.fac_dim == wanted.base.model.fac_dim  # which the base names
    (here / "c.yaml").write_text(BASE)
    with pytest.raises(ConfigError, match="`ic_enc_dim` belongs to another section, family or kind"):
        load_search(write(here, space=space), ("wave.h5",))


def test_counts_compare_and_random_trials_begin_anew(here):
    space = {
        "model.reconstruction": {"choices": ["poisson", "negative_binomial"]},
        "model.f_prior.variance": {"low": 0.1, "high": 1.0},
    }
    assert set(load_search(write(here, space=space), ("wave.h5",)).axes) == set(space)


def test_a_search_that_is_not_there(here):
    with pytest.raises(ConfigError, match="no search at nowhere"):
        load_search(here.relative_to(here) / "nowhere.yaml")


def test_a_base_that_is_not_beside_the_search_is_the_shipped_one_of_that_name(here):
    (here / "apart").mkdir()
    (here / "lfads.yaml").write_text(BASE)  # beside whoever runs it, not beside the search
    wanted = load_search(write(here / "apart", base="lfads.yaml"), ("wave.h5",))
    assert wanted.base == load_config(shipped.config("lfads.yaml"), (), ("wave.h5",))
    (here / "apart/lfads.yaml").write_text(BASE)
    assert load_search(here / "apart/s.yaml", ("wave.h5",)).base == load_config(here / "c.yaml", (), ("wave.h5",))


def test_perturbed_values_stay_in_their_range_and_off_its_ends(here):
    wanted = load_search(write(here, method="pbt"), ("wave.h5",))
    draw, values = random.Random(0), {"fit.learning_rate": 9e-3, "model.dropout": 0.55}
    for _ in range(200):
        values = explore(wanted, values, draw)
        assert 1e-6 < values["fit.learning_rate"] < 1e-2
        assert 0 < values["model.dropout"] < 0.6


def test_perturbed_values_leave_a_range_that_is_not_enforced(here):
    axis = {"low": 0.1, "high": 0.2, "explore": 0.8, "enforce": False}
    wanted = load_search(write(here, method="pbt", space={"objective.l2_gen": axis}), ("wave.h5",))
    draw = random.Random(0)
    near = [explore(wanted, {"objective.l2_gen": 0.15}, draw)["objective.l2_gen"] / 0.15 for _ in range(2000)]
    assert 0.2 <= min(near) < 0.21
    assert 1.79 < max(near) <= 1.8


def test_small_whole_numbers_are_perturbed_too(here):
    axis = {"low": 0, "high": 5, "init": 1, "explore": 0.3}  # a factor of 1.3 at most leaves 1 where it is, and any 0
    wanted = load_search(write(here, method="pbt", space={"objective.spike_jitter_bins": axis}), ("wave.h5",))
    draw, values = random.Random(0), {"objective.spike_jitter_bins": 1}
    seen = set()
    for _ in range(200):
        values = explore(wanted, values, draw)
        seen.add(values["objective.spike_jitter_bins"])
    assert seen == set(range(6))


def test_the_shipped_search_is_one():
    wanted = load_search(Path(__file__).parents[2] / "configs" / "search_lfads.yaml", ("a.h5",))
    s = wanted.settings
    assert (s.method, s.trials, s.burn_in_epochs, s.generation_epochs, s.generations) == ("pbt", 20, 80, 25, 8)
    assert s.patience == 4
    assert wanted.base == load_config(shipped.config("lfads.yaml"), (), ("a.h5",))
    weight = Range(low=1e-4, high=1.0, log=True, explore=0.8, enforce=False)
    assert wanted.axes == {
        "fit.learning_rate": Range(low=1e-5, high=5e-3, log=True, init=4e-3, explore=0.3),
        "model.dropout": Range(low=0.0, high=0.6, explore=0.3),
        "objective.coordinated_dropout": Range(low=0.01, high=0.7, init=0.5, explore=0.3),
        "objective.kl_f_scale": weight,
        "objective.kl_z_scale": weight,
        "objective.l2_gen": weight,
        "objective.l2_con": weight,
    }
    n = {"gen": 3 * wanted.base.model.gen_dim**2, "con": 3 * wanted.base.model.con_dim**2}  # what the file says of them
    assert {kind: sum(n.values()) / size for kind, size in n.items()} == {"gen": 1.25, "con": 5}


# one trial ------------------------------------------------------------------------------------------------------------

RAY = "Ray is not installed: pip install '.[search]'"


def test_a_trial_that_adopts_other_settings_begins_its_average_anew(here):
    pytest.importorskip("ray", reason=RAY)
    from rtdsae.train.trial import train_until

    wanted = load_search(write(here, generations=4), ("wave.h5",))
    prepared = [prepare(recording(), wanted.base)]

    def averaged(dropout, epochs):
        """Steps in the average when so many epochs are done."""
        values = {"model.dropout": dropout}
        train_until(here / "run", wanted.config(values), values, prepared, epochs, "")
        return int(Run.open(here / "run").load_checkpoint("last.pt")["average"]["n_averaged"])

    steps = averaged(0.1, 1)
    assert averaged(0.1, 2) == 2 * steps  # goes on
    assert averaged(0.2, 3) == steps
    assert averaged(0.2, 4) == 2 * steps


# the table ------------------------------------------------------------------------------------------------------------

LINE = "the loss is not finite in epoch 3; the batch is in [out]/failed.npz"


def show_trials():
    """Two generations of three trials, of which the second fails in its second one."""
    from rtdsae.cli.search import SearchTable
    from rtdsae.train.search import Generation

    scores = {"000": (0.31, 0.3), "001": (0.32, math.inf), "002": (0.33, 0.29)}
    with SearchTable(("model.dropout",)) as table:
        for i in range(2):
            for trial, score in scores.items():
                failure = "" if math.isfinite(score[i]) else LINE
                values = {"model.dropout": 0.125}
                table(Generation(trial, i + 1, 8, 25 * (i + 1), score[i], min(score), values, failure))


def test_a_terminal_has_a_table_of_the_trials_and_the_reasons_of_those_that_failed(capsys, monkeypatch):
    pytest.importorskip("ray", reason=RAY)
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "100")
    show_trials()
    shown = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", capsys.readouterr().err).splitlines()
    *rows, reason = (line.split() for line in shown[-5:])
    assert rows == [
        ["trial", "generation", "epoch", "score", "best", "model.dropout"],
        ["002", "2/8", "50", "0.29", "0.29", "0.125"],
        ["000", "2/8", "50", "0.3", "0.3", "0.125"],
        ["001", "2/8", "50", "failed", "0.32", "0.125"],
    ]
    assert " ".join(reason) == f"trial 001: {LINE}"


def test_elsewhere_a_generation_of_a_trial_is_a_line(capsys):
    pytest.importorskip("ray", reason=RAY)
    show_trials()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 6
    assert lines[0] == "trial 000  generation 1/8  epoch 25  score 0.31  best 0.3  model.dropout=0.125"
    assert lines[4] == f"trial 001  generation 2/8  epoch 50  score failed  best 0.32  model.dropout=0.125  {LINE}"


# real ones ------------------------------------------------------------------------------------------------------------

RAY_SESSIONS = Path("/tmp/ray")  # a folder for each Ray that was started on this computer
TAKES_S = 300


@pytest.mark.parametrize(
    ("base", "args", "said"),
    [
        (BASE.replace("horizon_bins: 15", "horizon_bins: 500"), (), "no train segment holds a window of 505 bins"),
        (BASE, ("--export", "my model"), "my model: a bundle's name must be"),
        (BASE.replace("{family", "{causal: false, family"), ("--export", "made"), "s.yaml is an acausal reference"),
    ],
)
def test_what_no_trial_can_mend_is_said_before_the_first(here, capsys, base, args, said):
    pytest.importorskip("ray", reason=RAY)
    (here / "c.yaml").write_text(base)
    write(here)
    assert main(["search", "s.yaml", "--data", "wave.h5", "--out", "out", *args]) == 2
    assert said in capsys.readouterr().err
    assert not (here / "out").exists()


def test_a_folder_is_one_search_at_a_time_and_of_one_once_a_trial_was_begun(here, capsys):
    pytest.importorskip("ray", reason=RAY)
    from rtdsae.train.search import claim

    claim(here / "out", load_search(write(here, trials=3), ("wave.h5",)), [recording()], "")
    wanted = load_search(write(here), ("wave.h5",))
    claim(here / "out", wanted, [recording()], "")  # of the first there was nothing yet
    (here / "out" / "ray").mkdir()
    (here / "out" / "ray" / "experiment_state-1.json").touch()
    claim(here / "out", wanted, [recording()], "")
    with pytest.raises(TrainingError, match=r"begun with search\.trials=2, not 3"):
        claim(here / "out", load_search(write(here, trials=3), ("wave.h5",)), [recording()], "")
    write(here)
    with alone(here / "out"):
        assert main(["search", "s.yaml", "--data", "wave.h5", "--out", "out"]) == 2
    assert "out is in use by another training or search" in capsys.readouterr().err


@pytest.mark.timeout(180)
def test_trials_that_no_computer_has_room_for_are_refused(here, capsys):
    pytest.importorskip("ray", reason=RAY)
    write(here, gpus=99)
    assert main(["search", "s.yaml", "--data", "wave.h5", "--out", "out"]) == 2
    assert "a trial takes 1 CPUs (fit.threads) and 99 GPUs (gpus), and no computer has" in capsys.readouterr().err


@pytest.mark.timeout(180)
def test_a_population_gives_up_its_worst_and_its_best_is_a_bundle(here):
    pytest.importorskip("ray", reason=RAY)
    space = {"fit.learning_rate": {"choices": [1e-9, 1e-2]}, "model.dropout": {"low": 0.0, "high": 0.3}}
    write(here, method="pbt", trials=4, generations=3, space=space)
    command = ["search", "s.yaml", "--data", "wave.h5", "--out", "out"]
    assert main([*command, "--export", "made"]) == 0
    trials = [Run.open(path) for path in sorted((here / "out" / "trials").iterdir())]
    assert len(trials) == 4
    passed = [[step.get("values", step) for step in run.info["search"]] for run in trials]
    assert any(len({json.dumps(values, sort_keys=True) for values in one}) > 1 for one in passed)  # somebody changed
    best = Run.open(here / "out" / "best")
    assert best.info["best_score"] == min(run.info["best_score"] for run in trials)
    assert best.model() is not None
    assert bundle.load(here / "made").manifest.family == "lfads"
    best.info["scores"] = {"co_bps": 0.5}
    best.save_info()
    assert main([*command]) == 0  # nothing is left to do
    assert Run.open(here / "out" / "best").info["scores"] == {"co_bps": 0.5}
    write(here, method="pbt", trials=3, generations=3, space=space)
    assert main(command) == 2


@pytest.mark.parametrize(
    ("scores", "last"),
    [
        ([0.5, 0.4, 0.4, 0.3999, 0.39985, 0.1], 6),  # the generation after the first four that are close
        ([0.5, 0.4, 0.3997, 0.3999, 0.3998, 0.3998, 0.3998], 7),
        ([-0.4, -0.40001, -0.3, -0.2, 0.0], 5),  # of a density
        ([math.inf, 0.4, 0.39, 0.38, 0.37], None),
        ([0.5, 0.4, 0.3, 0.2, 0.1, 0.05], None),
    ],
)
def test_a_population_stands_still_over_four_generations_however_often_it_is_interrupted(scores, last):
    pytest.importorskip("ray", reason=RAY)
    from rtdsae.train.search import Standstill

    ended, state = [], Standstill(4).get_state()
    for generation, score in enumerate(scores, 1):
        standstill = Standstill(4)
        standstill.set_state(state)
        results = [{"training_iteration": generation, "score": worse} for worse in (math.inf, score, 0.6)]
        ended.append([standstill(trial, result) for trial, result in zip("abc", results, strict=True)])
        assert not any(Standstill(None)(trial, result) for trial, result in zip("abc", results, strict=True))
        state = standstill.get_state()
    assert ended == [[generation == last] * 3 for generation in range(1, len(scores) + 1)]


@pytest.mark.timeout(180)
def test_a_population_that_stands_still_comes_to_its_end_early(here, capsys):
    pytest.importorskip("ray", reason=RAY)
    space = {"fit.learning_rate": {"low": 1e-9, "high": 2e-9}}
    write(here, method="pbt", generations=9, patience=2, space=space)
    assert main(["search", "s.yaml", "--data", "wave.h5", "--out", "out"]) == 0
    assert "finished: 2 of 2 trials came to their end" in capsys.readouterr().out
    assert [Run.open(path).info["epochs_done"] for path in (here / "out" / "trials").iterdir()] == [4, 4]  # 1 + 3


@pytest.mark.timeout(120)
def test_trials_by_tpe(here):
    pytest.importorskip("ray", reason=RAY)
    pytest.importorskip("optuna", reason=RAY)
    write(here, method="tpe", trials=3)
    assert main(["search", "s.yaml", "--data", "wave.h5", "--out", "out"]) == 0
    assert len(list((here / "out" / "trials").iterdir())) == 3


@pytest.mark.timeout(180)
def test_the_teacher_of_a_search_is_found_from_where_it_was_begun_and_may_move(here, capsys):
    pytest.importorskip("ray", reason=RAY)
    train = ["train", "c.yaml", "--data", "wave.h5", "--set", "fit.epochs=2"]
    assert main([*train, "--set", "model.causal=false", "--out", "teacher"]) == 0
    assert main([*train, "--out", "causal"]) == 0
    command = ["search", "s.yaml", "--data", "wave.h5", "--out", "out"]
    for teacher, code, said in [
        ("causal", 2, "data.teacher=causal is causal"),
        ("teacher", 0, "finished: 2 of 2 trials"),
        ("moved", 0, "finished: 2 of 2 trials"),
        ("another", 2, "out was begun with teacher.sha256="),
    ]:
        if teacher == "moved":
            (here / "teacher").rename(here / "moved")
        if teacher == "another":
            other = ["--set", "model.causal=false", "--set", "fit.seed=1", "--out", "another"]
            assert main([*train, *other]) == 0
        (here / "c.yaml").write_text(f"{BASE}data: {{teacher: {teacher}}}\n")
        write(here)
        assert main(command) == code
        captured = capsys.readouterr()
        assert said in captured.out + captured.err
        (here / "c.yaml").write_text(BASE)
    assert Run.open(here / "out" / "best").info["teacher"]


@pytest.mark.timeout(180)
@pytest.mark.parametrize("method", ["random", "tpe", "pbt"])
def test_a_search_that_was_interrupted_goes_on(here, method):
    pytest.importorskip("ray", reason=RAY)
    if method == "tpe":
        pytest.importorskip("optuna", reason=RAY)
    write(here, method=method, trials=4, generations=4, concurrent=1)
    command = [sys.executable, "-m", "rtdsae", "search", "s.yaml", "--data", "wave.h5", "--out", "out"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert any("generation 2/4" in line for line in process.stderr)
        process.send_signal(signal.SIGINT)
        said = "".join(process.communicate(timeout=100))
    assert "interrupted: 0 of 4 trials came to their end; the same command goes on" in said
    before = {path.name: Run.open(path).info["search"][0] for path in (here / "out" / "trials").iterdir()}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert "finished: 4 of 4 trials" in done.stdout, done.stderr
    assert {Run.open(path).info["epochs_done"] for path in (here / "out" / "trials").iterdir()} == {5}
    if method != "pbt":  # the same trials by the same names, and others: whoever proposes knows what it proposed
        after = {path.name: Run.open(path).info["search"][0] for path in (here / "out" / "trials").iterdir()}
        assert before.items() <= after.items()
        assert len({step["values"]["fit.learning_rate"] for step in after.values()}) == 4


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Two computers, with a token: the first, where they meet, has no core for trials, and the second has one."""
    pytest.importorskip("ray", reason=RAY)
    monkeypatch.setenv("HOME", str(tmp_path))  # Ray keeps the token there
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    ray = str(Path(sys.executable).with_name("ray"))
    with Network() as network:
        first, second = network.computer("first"), network.computer("second")
        head = ["--head", "--include-dashboard=false", f"--node-ip-address={first.address}", "--port=6379"]
        try:
            said(first.start(ray, "get-auth-token", "--generate"))
            said(first.start(ray, "start", *head, "--num-cpus=0"))
            said(second.start(ray, "start", f"--address={first.address}:6379", "--num-cpus=1"))
            yield first
        finally:
            subprocess.run([ray, "stop", "--force"], check=True, capture_output=True, timeout=TAKES_S)


def said(program):
    words = program.communicate(timeout=TAKES_S)[0]
    assert program.returncode == 0, words
    return words


@pytest.mark.slow
def test_a_cluster_does_the_same(here, cluster):
    write(here, method="pbt", trials=4, concurrent=4)
    command = [sys.executable, "-m", "rtdsae", "search", "s.yaml", "--data", "wave.h5", "--out", "out"]
    here_too = {path.name for path in RAY_SESSIONS.glob("session_*")}
    words = said(cluster.start(*command, "--address", f"{cluster.address}:6379"))
    assert "finished: 4 of 4 trials came to their end" in words
    assert {path.name for path in RAY_SESSIONS.glob("session_*")} == here_too  # no Ray of its own was started


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "[::1]:1", "127.0.0.1:door"])
def test_a_cluster_that_is_not_there_is_a_line(here, capsys, address):
    pytest.importorskip("ray", reason=RAY)
    write(here)
    assert main(["search", "s.yaml", "--data", "wave.h5", "--out", "out", "--address", address]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len([line for line in said if f"no Ray cluster at {address}" in line]) == 1
