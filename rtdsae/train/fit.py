"""The training loop, read top to bottom.

Every epoch draws from its own seed (windows, masks, noise), so a run that was interrupted and resumed at an epoch's
end goes on bit for bit on a CPU.
"""

import contextlib
import ctypes
import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.loggers.tensorboard import TensorBoardLogger

from rtdsae.errors import TrainingError
from rtdsae.model.family import Family
from rtdsae.recordings import Recording
from rtdsae.train.alignment import align, learnt
from rtdsae.train.alone import alone
from rtdsae.train.augment import augment
from rtdsae.train.average import Averaged
from rtdsae.train.behaviour import fit_behaviour
from rtdsae.train.config import FactorVAE, Fit, TrainConfig
from rtdsae.train.factor_vae import Adversary
from rtdsae.train.failures import NotFinite, absence_explained, bad_gradient, bad_loss, memory_explained
from rtdsae.train.objective import Loss, Schedule, selecting, valid_scores
from rtdsae.train.processes import add_up, begin, follow, make_fabric
from rtdsae.train.run import FAILED, Run
from rtdsae.train.teacher import Teacher
from rtdsae.train.windows import Part, SessionWindows, by_session, draw_batches, epoch_seed, session_windows

__all__ = ["Progress", "Standing", "Training", "keep_memory", "run_epochs", "train", "train_epoch"]

MIN_LR_FRACTION = 0.1
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h


@dataclass(frozen=True)
class Progress:
    """One finished epoch, for whoever shows it.

    Attributes:
        epoch: from 0.
        epochs: at most so many.
        metrics: what goes to metrics.csv.
        best_epoch: the epoch of the best selection score so far.
    """

    epoch: int
    epochs: int
    metrics: dict[str, float]
    best_epoch: int


@dataclass
class Standing:
    """Where a run stands after an epoch; saved in last.pt."""

    epoch: int = -1
    best: float = math.inf
    best_epoch: int = -1


@dataclass
class Training:
    """All that the epochs of a training work on.

    Attributes:
        config: the configuration.
        sessions: their windows.
        fabric: the processes that share the training, and their devices.
        family: the model.
        loss: what makes its loss, shared among the processes.
        optimizer: of its parameters.
        average: of its weights along the run, which is validated and kept.
        adversary: FactorVAE's discriminator, where the objective has one.
    """

    config: TrainConfig
    sessions: list[SessionWindows]
    fabric: Fabric
    family: Family
    loss: torch.nn.Module
    optimizer: torch.optim.Optimizer
    average: Averaged
    adversary: Adversary | None = None


def train(
    path: str | Path,
    config: TrainConfig,
    recordings: Sequence[Recording],
    report: Callable[[Progress], None] = lambda progress: None,
    *,
    command: str = "",
    resume: bool = False,
) -> Run:
    """Train a model until its epochs or its patience end. KeyboardInterrupt ends it as well, and the run is usable.

    Args:
        path: the run directory to make, or to go on with.
        config: the configuration.
        recordings: the prepared recordings, one for each session.
        report: called after each epoch.
        command: what the user typed, for the model card.
        resume: go on from last.pt.

    Returns:
        The run; `info` says how it ended.

    Raises:
        TrainingError: no window fits, the device is missing, the loss is not finite, there is nothing to resume, or
            another training is at work on the run.
            What is wrong from the start leaves nothing behind.
    """
    keep_memory()
    with contextlib.ExitStack() as held:
        run, training = set_up(Path(path), config, recordings, command, resume, held)
        standing = restore(run, training) if resume else Standing()
        run.info["epochs_done"] = standing.epoch + 1
        epochs = run_epochs(training, standing)
        if training.fabric.is_global_zero:
            lead(run, training, standing, epochs, report)
        else:
            follow(epochs, run)
    return run


def set_up(
    path: Path,
    config: TrainConfig,
    recordings: Sequence[Recording],
    command: str,
    resume: bool,
    held: contextlib.ExitStack,
) -> tuple[Run, Training]:
    """The run, made or opened, and all that its epochs work on, before the first of them.

    The first process has the run's folder alone until `held` ends, and what it writes there is whole by then.

    Raises:
        TrainingError: as `train`.
    """
    fit, sessions = config.fit, session_windows(recordings, config)
    teacher = Teacher(config, recordings) if config.data.teacher else None
    told = teacher.hash if teacher else ""
    logger = TensorBoardLogger(path, name="tensorboard", version="")
    fabric = make_fabric(fit, logger, len(sessions))
    if teacher:
        teacher.teach(sessions, fabric.device)

    def make() -> Run:
        if resume:
            held.enter_context(alone(path))
            return Run.resume(path, config, recordings, command, told)
        run = Run.create(path, config, recordings, command, told)
        held.enter_context(alone(path))
        return run

    with absence_explained(fabric):
        run = begin(fabric, path, make)
    held.callback(logger.finalize, "")  # else its thread writes on for as long as the program lives
    if run.info["teacher"] != told:
        raise TrainingError(f"data.teacher={config.data.teacher} is another here than where the training was begun")
    run.info["too_short"] = sum(windows.too_short for session in sessions for windows in (session.train, session.valid))

    torch.manual_seed(fit.seed)
    family = run.build()
    for session in sessions:
        bins = session.training_bins()
        family.use(session.index).session.fit(bins, bins[:, session.tensors.heldin])
    align(family, recordings)
    if teacher:
        teacher.hand_on(family)
    optimizer = torch.optim.AdamW(family.parameters(), lr=fit.learning_rate, weight_decay=fit.weight_decay)
    with absence_explained(fabric), memory_explained(fit, sessions[0].train.bins):
        loss, optimizer = fabric.setup(Loss(family, config.objective), optimizer)
        average, adversary = Averaged(family), make_adversary(config, fabric.device)
    return run, Training(config, sessions, fabric, family, loss, optimizer, average, adversary)


def lead(
    run: Run,
    training: Training,
    standing: Standing,
    epochs: Iterator[tuple[dict[str, float], bool]],
    report: Callable[[Progress], None],
) -> None:
    """What the first process does, or the only one: keeps and reports each epoch, and finishes the run however it ends.

    Raises:
        TrainingError: the training failed.
    """
    run.trim_metrics(standing.epoch)
    gc.collect()
    gc.freeze()  # what is there by now stays: not worth looking through again and again
    begun = time.monotonic() - run.info.get("seconds", 0.0)
    try:
        for metrics, improved in epochs:
            epoch = standing.epoch
            if improved:
                best = {"model": training.average.module.state_dict(), "epoch": epoch, "score": standing.best}
                run.save_checkpoint("best.pt", best | {"finished": False})
            run.append_metrics({"epoch": epoch, **metrics})
            run.save_checkpoint("last.pt", snapshot(training, standing))
            training.fabric.log_dict(metrics, step=epoch)
            run.info |= {"seconds": round(time.monotonic() - begun, 3), "epochs_done": epoch + 1}
            report(Progress(epoch, training.config.fit.epochs, metrics, standing.best_epoch))
        run.info["state"] = "finished"
    except KeyboardInterrupt:
        run.info["state"] = "interrupted"
    except NotFinite as error:
        run.save_failed(error.parts)
        run.info["state"] = "failed"
        finish(run, training)
        raise TrainingError(f"{error}; the batch is in {run.path / FAILED}") from None
    except TrainingError:
        run.info["state"] = "failed"
        finish(run, training)
        raise
    finally:
        gc.unfreeze()
    finish(run, training)


def keep_memory() -> None:
    """Has the C library keep what is freed, as far as that can be had (glibc).

    Else it returns a batch's large tensors to the system, which hands out the same pages again, zeroed, a fault each: a
    tenth of a training step on a CPU.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, 1 << 30)
        mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


def make_adversary(config: TrainConfig, device: torch.device) -> Adversary | None:
    """FactorVAE's discriminator, where the objective has one."""
    chosen = config.objective.f_objective
    if not isinstance(chosen, FactorVAE):
        return None
    return Adversary(config.model.f_dim, chosen.units, chosen.learning_rate, device)


def run_epochs(training: Training, standing: Standing) -> Iterator[tuple[dict[str, float], bool]]:
    """Epoch after epoch until they or the patience end: the metrics of each, and whether it was the best so far.

    `standing` is where to go on from, and is kept up to date.
    """
    config, fit, sessions = training.config, training.config.fit, training.sessions
    for epoch in range(standing.epoch + 1, fit.epochs):
        if standing.epoch - max(standing.best_epoch, config.objective.warm_up) >= fit.patience:
            return
        for group in training.optimizer.param_groups:
            group["lr"] = learning_rate(fit, epoch)
        with absence_explained(training.fabric), memory_explained(fit, sessions[0].train.bins):
            metrics = train_epoch(training, epoch)
            scores = valid_scores(training.average.module, sessions, fit.windows_at_once, training.fabric.device)
        metrics |= {f"valid/{name}": value for name, value in scores.items()}
        metrics["learning_rate"] = learning_rate(fit, epoch)
        standing.epoch = epoch
        score = scores[selecting(scores)]
        improved = score < standing.best
        if improved:
            standing.best, standing.best_epoch = score, epoch
        yield metrics, improved


def train_epoch(training: Training, epoch: int) -> dict[str, float]:
    """One pass over freshly drawn windows: the mean of each loss term.

    A batch is taken in shards, of which this process takes some and others the rest; their gradients are averaged by
    their windows.
    """
    fabric, loss, optimizer, adversary = training.fabric, training.loss, training.optimizer, training.adversary
    fit, objective = training.config.fit, training.config.objective
    torch.manual_seed(epoch_seed(fit, epoch))  # masks and noise
    batches = draw_batches(training.sessions, fit, epoch)
    n_windows = sum(map(len, batches))
    schedule = Schedule(epoch, min(1.0, (epoch + 1) / (objective.ramp_epochs + 1)), n_windows)
    sums: dict[str, float] = {}
    for step, windows in enumerate(batches):
        seed = epoch_seed(fit, epoch) * 1_000_003 + step * fit.shards
        mine = list(enumerate(windows.tensor_split(fit.shards)))[fabric.global_rank :: fabric.world_size]
        optimizer.zero_grad()
        drawn: list[torch.Tensor] = []
        for shard, some in mine:
            parts = take(training, some, seed + shard)
            last = shard == mine[-1][0]
            with fabric.no_backward_sync(loss, not last):  # type: ignore[arg-type]
                terms, f = loss(parts, schedule, adversary)
                if why := bad_loss(fabric, terms, epoch):
                    raise NotFinite(why, whole(training, windows, seed, parts))
                fabric.backward(terms["loss"] * (len(some) * fabric.world_size / len(windows)))
            drawn.append(f.detach())
            for name, value in terms.items():
                sums[name] = sums.get(name, 0.0) + float(value.detach()) * len(some) / n_windows
        norm = fabric.clip_gradients(loss, optimizer, max_norm=fit.clip_norm, error_if_nonfinite=False)
        if why := bad_gradient(fit, norm, epoch):
            raise NotFinite(why, whole(training, windows, seed, parts))
        optimizer.step()
        training.average.update_parameters(training.family)
        if adversary:
            learnt = adversary.learn(torch.cat(drawn))
            sums["discriminator"] = sums.get("discriminator", 0.0) + learnt * len(windows) / n_windows
    return {f"train/{name}": value for name, value in add_up(fabric, sums).items()}


def take(training: Training, windows: torch.Tensor, seed: int) -> list[Part]:
    """Windows, (B, 2) as `draw_batches` has them, as the model gets them, by session.

    Of a shard everything is drawn from its seed, masks and noise too: the same, whoever takes it.
    """
    if training.config.fit.shards > 1:
        torch.manual_seed(seed % (1 << 64))
    parts = [training.sessions[i].part(first, training.fabric.device) for i, first in by_session(windows)]
    o = training.config.objective
    return [part._replace(windows=augment(part.windows, part.heldin, o)) for part in parts]


def whole(training: Training, windows: torch.Tensor, seed: int, parts: list[Part]) -> list[Part]:
    """The whole batch, of which `parts` were taken last; shards are drawn again, since none is kept for this."""
    shards = windows.tensor_split(training.config.fit.shards)
    if len(shards) == 1:
        return parts
    return [part for shard, some in enumerate(shards) for part in take(training, some, seed + shard)]


def learning_rate(fit: Fit, epoch: int) -> float:
    """Half a cosine from the first learning rate to a tenth of it."""
    falling = 0.5 * (1 + math.cos(math.pi * epoch / max(1, fit.epochs - 1)))
    return fit.learning_rate * (MIN_LR_FRACTION + (1 - MIN_LR_FRACTION) * falling)


def snapshot(training: Training, standing: Standing) -> dict[str, Any]:
    """What last.pt holds."""
    content = {"model": training.family.state_dict(), "average": training.average.state_dict()}
    content |= {"optimizer": training.optimizer.state_dict(), "standing": vars(standing)}
    return content | ({"adversary": training.adversary.state_dict()} if training.adversary else {})


def restore(run: Run, training: Training) -> Standing:
    """Put last.pt back; a run that was ended in its first epoch begins anew.

    Raises:
        TrainingError: it is damaged, or of a version that kept no average.
    """
    if not (run.path / "last.pt").exists():
        return Standing()
    last = run.load_checkpoint("last.pt")
    best = run.load_checkpoint("best.pt") if (run.path / "best.pt").exists() else {"score": None}
    if "average" not in last or "score" not in best:
        raise TrainingError(f"{run.path} is of an earlier version of rtdsae, which cannot be gone on with: train again")
    training.family.load_state_dict(last["model"])
    training.average.load_state_dict(last["average"])
    training.optimizer.load_state_dict(last["optimizer"])
    if training.adversary:
        training.adversary.load_state_dict(last["adversary"])
    return Standing(**last["standing"])


def finish(run: Run, training: Training) -> None:
    """Fit the behaviour read-out on the best weights; say in run.json how the run ended, by what was saved of it."""
    run.info["best_epoch"] = -1
    if (run.path / "best.pt").exists():
        best = run.load_checkpoint("best.pt")
        if not best.get("finished"):
            run.info.pop("scores", None)  # of an earlier model, if the run was resumed
        run.info |= {"best_epoch": best["epoch"], "best_score": best["score"]}
        run.info["epochs_done"] = max(run.info["epochs_done"], best["epoch"] + 1)
        family, tensors = run.restore(best["model"]), [session.tensors for session in training.sessions]
        if family.behaviour is not None:
            run.info["behaviour_fit"] = fit_behaviour(family, tensors, training.sessions[0].train.bins)
        if alignment := learnt(family, [each.recording for each in tensors]):
            run.save_alignment(alignment)
        run.save_checkpoint("best.pt", best | {"model": family.state_dict(), "finished": True})
    run.save_info()
