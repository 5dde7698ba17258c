"""Search for settings: a population that learns its settings while it trains, or random or TPE trials, on Ray Tune.

A trial is an ordinary run, trained a generation of epochs at a time. After each generation its folder is handed to Ray
as a checkpoint, so that a search can be interrupted, and its trials can move between the computers of a cluster.

Population-based training (`pbt`): after each generation the worst quarter of the trials give up and go on from the
folders of trials of the best quarter, weights, optimiser and all, with settings near theirs. That is Ray's own
scheduler (Jaderberg et al. 2017, arXiv:1711.09846), all trials in step. In AutoLFADS (Keshtkaran et al. 2022,
doi:10.1038/s41592-022-01675-0) each trial meets another one at random instead, and the worse of the two gives up.
Settings are perturbed as there: multiplied by a factor drawn from 1 ± `explore`, of those that leave them in their
range where it is enforced. With `patience` a population that stands still ends, by the rule of lfads-torch but a
generation later. The learning rate falls over the whole search as it does in any run; what is searched is where it
starts.

    DIR/search.json  what was asked for; only the same can be gone on with
    DIR/ray/         Ray's own state, pickled: go on only with what you trust
    DIR/trials/000/  the trials, each a run directory; `search` in its run.json has the settings that it went through
    DIR/best/        a copy of the best one
"""

import dataclasses
import filecmp
import json
import math
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from ray import tune
from ray.tune.experiment import Trial as RayTrial
from ray.tune.schedulers import FIFOScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.search import BasicVariantGenerator, ConcurrencyLimiter, SearchAlgorithm, Searcher

from rtdsae.errors import TrainingError, one_line
from rtdsae.recordings import Recording
from rtdsae.train.alone import alone
from rtdsae.train.cluster import check_room, running_ray
from rtdsae.train.run import Run, write
from rtdsae.train.sessions import check_together
from rtdsae.train.space import Choices, Search, check_shapes, explore, is_whole, leaves
from rtdsae.train.teacher import Teacher
from rtdsae.train.trial import Trial, copy_run
from rtdsae.train.windows import session_windows

__all__ = ["Found", "Generation", "search"]

FREE = ("concurrent", "gpus")  # may differ when a search goes on
GIVES_UP = 0.25  # of a population, after each generation
CHECKPOINTS = ("best.pt", "last.pt")
GAIN = 5e-4  # of the score, which a population has to make within its patience; lfads-torch's
KEPT = 4  # checkpoints of each trial; Ray wants more than 2 of a population


@dataclass(frozen=True)
class Generation:
    """A trial that has trained for a generation, for whoever shows it.

    Attributes:
        trial: its name, the folder in `trials`.
        generation: from 1.
        generations: how many there are.
        epoch: epochs done.
        score: nats per bin and neuron, less is better: of a population, the best one in this generation; else the best
            one so far. Infinite where the loss was not finite.
        best: the best score so far.
        values: what was searched.
        failure: why the trial could not go on, or nothing.
    """

    trial: str
    generation: int
    generations: int
    epoch: int
    score: float
    best: float
    values: dict[str, Any]
    failure: str


@dataclass(frozen=True)
class Found:
    """How a search ended.

    Attributes:
        best: the best trial's run, DIR/best.
        trial: the name of that trial.
        finished: trials that came to their end.
        failed: what stopped trials, a line each.
        state: `finished` or `interrupted`.
    """

    best: Run
    trial: str
    finished: int
    failed: list[str]
    state: str


def search(
    search: Search,
    recordings: Sequence[Recording],
    out: Path,
    report: Callable[[Generation], None],
    *,
    address: str | None = None,
    command: str = "",
) -> Found:
    """Run a search, or go on with it. Ctrl-C ends it after what it has, and the same call goes on.

    Args:
        search: what is searched, and how.
        recordings: the prepared recordings; Ray hands them to the trials.
        out: the folder to make, or to go on with. On a cluster, all of its computers have to see it.
        report: called after each generation of a trial.
        address: a Ray cluster's; without one, Ray is started on this computer for as long as it takes.
        command: what the user typed, for the model card.

    Raises:
        ConfigError: a population cannot be over one of the keys, or the recordings do not go together.
        TrainingError: `out` is something else, another search, or in use; no window fits; there is no room for a
            trial; or no trial came to anything.
    """
    check_together(recordings, search.base)
    session_windows(recordings, search.base)  # said here, and not by each trial
    if search.settings.method == "pbt":
        check_shapes(search, recordings)
    search, teacher = with_teacher(search, recordings)
    at_once = search.settings.concurrent
    cpus = None if at_once is None else at_once * search.base.fit.threads
    with alone(out):
        claim(out, search, recordings, teacher)
    with alone(out), running_ray(cpus, address):  # once more: a new folder could not be held before it was made
        check_room(search.base.fit.threads, search.settings.gpus)
        trials = run_trials(search, recordings, out, report, command)
        return gather(out, trials, search.settings.trials)


def run_trials(
    search: Search, recordings: Sequence[Recording], out: Path, report: Callable[[Generation], None], command: str
) -> list[RayTrial]:
    """Train all trials to their end, or go on with what is in `out`."""
    goes_on = begun(out)
    searcher, scheduler = method(search, slowest(out, search.settings.trials) if goes_on else 0)
    standstill = Standstill(search.settings.patience if search.settings.method == "pbt" else None)
    random.seed(search.settings.seed)  # Ray's scheduler draws from it
    return tune.run(
        tune.with_parameters(Trial, search=search, recordings=list(recordings), command=command),
        name="ray",
        storage_path=str(out.resolve()),
        metric="score",
        mode="min",
        config={key: start(search, key) for key in search.axes},
        num_samples=search.settings.trials,
        search_alg=searcher,
        scheduler=scheduler,
        resources_per_trial={"cpu": search.base.fit.threads, "gpu": search.settings.gpus},
        checkpoint_config=tune.CheckpointConfig(num_to_keep=KEPT, checkpoint_frequency=1, checkpoint_at_end=True),
        stop=standstill,
        callbacks=[Reports(report, search), standstill],
        reuse_actors=True,
        raise_on_failed_trial=False,
        max_failures=1,  # a computer of a cluster may go away
        trial_dirname_creator=str,
        resume="AUTO+ERRORED" if goes_on else False,
        verbose=0,
    ).trials


def begun(out: Path) -> bool:
    """Whether trials of the search in this folder were begun."""
    return any(out.glob("ray/experiment_state-*.json"))


def with_teacher(search: Search, recordings: Sequence[Recording]) -> tuple[Search, str]:
    """The search with the whole path of its teacher, since trials run in folders of their own; and the teacher's hash.

    Raises:
        ConfigError, TrainingError: it cannot teach.
    """
    base = search.base
    if not base.data.teacher:
        return search, ""
    found = Teacher(base, recordings).hash
    data = msgspec.structs.replace(base.data, teacher=str(Path(base.data.teacher).resolve()))
    return dataclasses.replace(search, base=msgspec.structs.replace(base, data=data)), found


def claim(out: Path, search: Search, recordings: Sequence[Recording], teacher: str) -> None:
    """Make the search's folder, or see that it is this search's; one that came to no trial may become another.

    Raises:
        TrainingError: it is not.
    """
    base = msgspec.to_builtins(search.base)
    del base["data"]["path"], base["data"]["teacher"]
    asked = {
        "search": {k: v for k, v in msgspec.to_builtins(search.settings).items() if k not in (*FREE, "base")},
        "base": base,
        "data": {str(i): recording.hash for i, recording in enumerate(recordings)},
    }
    if teacher:
        asked["teacher"] = {"sha256": teacher}
    path = out / "search.json"
    if begun(out):
        try:
            old = leaves(json.loads(path.read_text()))
        except (OSError, ValueError, AttributeError) as error:
            raise TrainingError(f"{path} is damaged ({error}): search anew in another --out") from None
        new = leaves(json.loads(json.dumps(asked)))
        if changed := [key for key in {**old, **new} if old.get(key) != new.get(key)]:
            key = changed[0]
            was = "on other data" if key.startswith("data.") else f"with {key}={old.get(key)}, not {new.get(key)}"
            raise TrainingError(f"{out} was begun {was}: go on with the same, or choose another --out")
        return
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not path.exists())):
        raise TrainingError(f"{out} exists and is no search: choose another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
        write(path, json.dumps(asked, indent=2).encode())
    except OSError as error:
        raise TrainingError(f"cannot write the search {out}: {error.strerror}") from None


def start(search: Search, key: str) -> Any:
    """Where a key's values are drawn from, or a population's trials begin."""
    axis = search.axes[key]
    if isinstance(axis, Choices):
        return tune.choice(list(axis.choices))
    if search.settings.method == "pbt" and axis.init is not None:
        return axis.init
    low, high = axis.low, axis.high
    if is_whole(search, key):
        return tune.lograndint(low, high + 1) if axis.log else tune.randint(low, high + 1)
    return tune.loguniform(low, high) if axis.log else tune.uniform(low, high)


def slowest(out: Path, n_trials: int) -> int:
    """Generations that every trial of an interrupted search has done, those at their end aside."""
    results = [trial.last_result or {} for trial in tune.ExperimentAnalysis(str(out.resolve() / "ray")).trials]
    going = [result.get("training_iteration", 0) for result in results if not result.get("done")]
    return 0 if len(results) < n_trials else min(going, default=0)


def method(search: Search, done: int) -> tuple[SearchAlgorithm | Searcher, TrialScheduler]:
    """Who proposes trials, and who ends them; so many generations were done before the search goes on."""
    s = search.settings
    if s.method == "pbt":
        draw = random.Random(s.seed)
        return BasicVariantGenerator(random_state=s.seed), PopulationBasedTraining(
            time_attr="training_iteration",
            perturbation_interval=1,
            burn_in_period=done + 1,  # Ray forgets where it was, and would wait for ever for a generation that is over
            quantile_fraction=GIVES_UP,
            custom_explore_fn=lambda values: explore(search, values, draw),
            synch=True,
        )
    if s.method == "random":
        return BasicVariantGenerator(max_concurrent=s.concurrent or 0, random_state=s.seed), FIFOScheduler()
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    proposals = OptunaSearch(seed=s.seed)
    return ConcurrencyLimiter(proposals, s.concurrent) if s.concurrent else proposals, FIFOScheduler()


class Reports(tune.Callback):
    """Hands what Ray says of a trial to whoever shows it."""

    def __init__(self, report: Callable[[Generation], None], search: Search) -> None:
        self.report, self.search = report, search

    def on_trial_result(
        self, iteration: int, trials: list[RayTrial], trial: RayTrial, result: dict[str, Any], **info: Any
    ) -> None:
        """A generation of a trial has ended."""
        self.report(
            Generation(
                trial=name(trial),
                generation=result["training_iteration"],
                generations=self.search.settings.generations,
                epoch=result["epoch"],
                score=result["score"],
                best=result["best"],
                values={key: result["config"][key] for key in self.search.axes},
                failure=result["failure"],
            )
        )


class Standstill(tune.Callback, tune.Stopper):
    """Ends a population whose best score falls no more; a callback too, whose state Ray keeps when a search goes on.

    Each trial ends with its next result. To stop all of them at once, while they wait for one another, would be to
    throw away checkpoints that are still being written.

    Args:
        patience: generations over which it has to fall; without it, no population is ended.
    """

    def __init__(self, patience: int | None) -> None:
        self.patience = patience
        self.best: dict[int, float] = {}  # score in each generation

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Whether a trial with this result ends: the generations before it are over."""
        generation = result["training_iteration"]
        self.best[generation] = min(self.best.get(generation, math.inf), result["score"])
        if self.patience is None or generation <= self.patience:
            return False
        first, *others = (self.best.get(i, math.inf) for i in range(generation - self.patience, generation))
        return math.isfinite(first) and first - min(others) <= GAIN * abs(first)

    def stop_all(self) -> bool:
        """Never: trials end one by one."""
        return False

    def get_state(self) -> dict[str, Any]:
        """What is kept."""
        return {"best": self.best}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from what was kept."""
        self.best = state["best"]


def name(trial: RayTrial) -> str:
    """A trial's folder: its number, which Ray keeps in its tag, whatever order it restores them in."""
    return f"{int(trial.experiment_tag.partition('_')[0]):03}"


# ---------------------------------------------------------------------------------------------------------- the end


def gather(out: Path, trials: Sequence[RayTrial], n_trials: int) -> Found:
    """Lay out every trial as a run, and a copy of the best one; of the `n_trials`, some may not have begun.

    Raises:
        TrainingError: no trial has a finished epoch.
    """
    runs = dict(collected(out, trials))
    failed = [f"trial {name(trial)}: {why}" for trial in trials if (why := reason(trial))]
    scored = {key: run for key, run in runs.items() if run.info.get("best_score") is not None}
    ended = [trial for trial in trials if trial.status == RayTrial.ERROR or (trial.last_result or {}).get("done")]
    over = len(ended) == n_trials
    if not scored:
        why = failed[0] if failed else "it was interrupted before a generation ended: the same command goes on"
        raise TrainingError(f"no trial of {out} has come to anything: {why}")
    best = min(scored, key=lambda key: scored[key].info["best_score"])
    lay_out(scored[best].path, out / "best")
    finished = sum(not reason(trial) for trial in ended)
    return Found(Run.open(out / "best"), best, finished, failed, "finished" if over else "interrupted")


def collected(out: Path, trials: Sequence[RayTrial]) -> Iterator[tuple[str, Run]]:
    """Each trial's last checkpoint as a run in DIR/trials."""
    for trial in sorted(trials, key=name):
        if trial.checkpoint is None:
            continue
        with trial.checkpoint.as_directory() as folder:
            if (Path(folder) / "run.json").exists():
                lay_out(Path(folder), out / "trials" / name(trial))
                yield name(trial), Run.open(out / "trials" / name(trial))


def reason(trial: RayTrial) -> str:
    """Why a trial stopped before its end, or nothing."""
    if trial.status == RayTrial.ERROR:
        said = str(trial.get_error() or "").strip().splitlines()
        return one_line(said[-1]) if said else "it was lost"
    return str(trial.last_result.get("failure", "")) if trial.last_result else ""


def lay_out(run: Path, target: Path) -> None:
    """Copy a run in the place of an earlier one; the very same one stays, with the scores that it has by now."""
    if target.exists():
        same, _, _ = filecmp.cmpfiles(run, target, CHECKPOINTS, shallow=False)
        if same == [*CHECKPOINTS]:
            return
        shutil.rmtree(target)
    copy_run(run, target)
