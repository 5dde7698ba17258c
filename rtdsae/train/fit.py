"""The training loop, read top to bottom.

Every epoch draws from its own seed (windows, masks, noise), so a run that was interrupted and resumed at an epoch's
end goes on bit for bit on a CPU.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.loggers.tensorboard import TensorBoardLogger
from lightning_fabric.utilities.exceptions import MisconfigurationException

from rtdsae.errors import TrainingError
from rtdsae.model.family import Family
from rtdsae.recordings import Recording
from rtdsae.train.alignment import align, learnt
from rtdsae.train.behaviour import fit_behaviour
from rtdsae.train.config import FactorVAE, Fit, TrainConfig
from rtdsae.train.factor_vae import Adversary
from rtdsae.train.objective import Schedule, loss_terms, valid_scores
from rtdsae.train.run import Run, vocabulary
from rtdsae.train.windows import SessionWindows, Tensors

__all__ = ["Progress", "Standing", "make_fabric", "run_epochs", "train"]

MIN_LR_FRACTION = 0.1


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


def train(
    path: Path,
    config: TrainConfig,
    recordings: Sequence[Recording],
    report: Callable[[Progress], None],
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
        TrainingError: no window fits, the device is missing, the loss is not finite, or there is nothing to resume.
            What is wrong from the start leaves nothing behind.
    """
    fit, s, r = config.fit, config.window.anchor_bins, config.window.horizon_bins
    torch.set_num_threads(fit.threads)
    sessions = session_windows(recordings, config)
    fabric = make_fabric(fit, TensorBoardLogger(path, name="tensorboard", version=""))
    make = Run.resume if resume else Run.create
    run = make(path, config, recordings, command)
    run.info["too_short"] = sum(windows.too_short for session in sessions for windows in (session.train, session.valid))

    torch.manual_seed(fit.seed)
    family = run.build()
    for session in sessions:
        family.use(session.index).session.fit(
            session.training_bins(), session.training_bins()[:, session.tensors.heldin]
        )
    align(family, recordings)
    optimizer = torch.optim.AdamW(family.parameters(), lr=fit.learning_rate, weight_decay=fit.weight_decay)
    model, optimizer = fabric.setup(family, optimizer)
    adversary = make_adversary(config, fabric.device)
    standing = restore(run, family, optimizer, adversary) if resume else Standing()

    try:
        for metrics, improved in run_epochs(fabric, model, family, optimizer, sessions, config, standing, adversary):
            epoch = standing.epoch
            if improved:
                run.save_checkpoint("best.pt", {"model": family.state_dict(), "epoch": epoch, "finished": False})
            run.append_metrics({"epoch": epoch, **metrics})
            run.save_checkpoint("last.pt", snapshot(family, optimizer, standing, adversary))
            fabric.log_dict(metrics, step=epoch)
            report(Progress(epoch, fit.epochs, metrics, standing.best_epoch))
        run.info["state"] = "finished"
    except KeyboardInterrupt:
        run.info["state"] = "interrupted"
    except TrainingError:
        run.info["state"] = "failed"
        finish(run, sessions, standing, s + r)
        raise
    finish(run, sessions, standing, s + r)
    return run


def session_windows(recordings: Sequence[Recording], config: TrainConfig) -> list[SessionWindows]:
    """Each session's windows.

    Raises:
        TrainingError: no window fits.
    """
    s, r, words = config.window.anchor_bins, config.window.horizon_bins, vocabulary(recordings)
    sessions: list[SessionWindows] = []
    before = 0
    for i, recording in enumerate(recordings):
        sessions.append(SessionWindows(Tensors(recording, config.objective.cv_mask), s + r, r, words, before, i))
        before += len(sessions[-1].train.segments)
    return sessions


def make_adversary(config: TrainConfig, device: torch.device) -> Adversary | None:
    """FactorVAE's discriminator, where the objective has one."""
    chosen = config.objective.f_objective
    if not isinstance(chosen, FactorVAE):
        return None
    return Adversary(config.model.f_dim, chosen.units, chosen.learning_rate, device)


def make_fabric(fit: Fit, logger: TensorBoardLogger | None = None) -> Fabric:
    """Fabric on the wanted device, with curves where a logger is given.

    Raises:
        TrainingError: the device is not there.
    """
    try:
        fabric = Fabric(accelerator=fit.accelerator, devices=1, precision=fit.precision, loggers=logger)
    except (MisconfigurationException, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise TrainingError(f"fit.accelerator={fit.accelerator} cannot be had ({reason}): choose cpu or auto") from None
    fabric.launch()
    return fabric


def run_epochs(
    fabric: Fabric,
    model: torch.nn.Module,
    family: Family,
    optimizer: torch.optim.Optimizer,
    sessions: list[SessionWindows],
    config: TrainConfig,
    standing: Standing,
    adversary: Adversary | None = None,
) -> Iterator[tuple[dict[str, float], bool]]:
    """Epoch after epoch until they or the patience end: the metrics of each, and whether it was the best so far.

    `standing` is where to go on from, and is kept up to date.
    """
    fit = config.fit
    for epoch in range(standing.epoch + 1, fit.epochs):
        if standing.epoch - max(standing.best_epoch, config.objective.warm_up) >= fit.patience:
            return
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(fit, epoch)
        metrics = train_epoch(fabric, model, family, optimizer, sessions, config, epoch, adversary)
        scores = valid_scores(family, sessions, 4 * fit.batch_size, fabric.device)
        metrics |= {f"valid/{name}": value for name, value in scores.items()}
        metrics["learning_rate"] = learning_rate(fit, epoch)
        standing.epoch = epoch
        score = scores.get("nll_heldout", scores["nll_masked"])
        improved = score < standing.best
        if improved:
            standing.best, standing.best_epoch = score, epoch
        yield metrics, improved


def train_epoch(
    fabric: Fabric,
    model: torch.nn.Module,
    family: Family,
    optimizer: torch.optim.Optimizer,
    sessions: list[SessionWindows],
    config: TrainConfig,
    epoch: int,
    adversary: Adversary | None = None,
) -> dict[str, float]:
    """One pass over freshly drawn windows: the mean of each loss term."""
    fit, objective = config.fit, config.objective
    torch.manual_seed(fit.seed * 1_000_003 + epoch)  # masks and noise
    batches = draw_batches(sessions, fit, epoch)
    n_windows = sum(len(first) for _, first in batches)
    schedule = Schedule(epoch, min(1.0, (epoch + 1) / (objective.ramp_epochs + 1)), n_windows)
    sums: dict[str, float] = {}
    for i, first in batches:
        session = sessions[i]
        family.use(session.index)
        batch = session.tensors.windows_at(first, session.train.bins, fabric.device)
        context, heldin = session.context(first, fabric.device), session.tensors.heldin.to(fabric.device)
        terms, f = loss_terms(model, family, batch, context, heldin, objective, schedule, adversary)
        if not torch.isfinite(terms["loss"]):
            bad = ", ".join(name for name, value in terms.items() if not torch.isfinite(value))
            raise TrainingError(f"{bad} is not finite in epoch {epoch}: lower fit.learning_rate or fit.clip_norm")
        optimizer.zero_grad()
        fabric.backward(terms["loss"])
        fabric.clip_gradients(model, optimizer, max_norm=fit.clip_norm)
        optimizer.step()
        if adversary:
            terms["discriminator"] = torch.tensor(adversary.learn(f))
        for name, value in terms.items():
            sums[name] = sums.get(name, 0.0) + float(value.detach()) * len(first) / n_windows
    return {f"train/{name}": value for name, value in sums.items()}


def draw_batches(sessions: list[SessionWindows], fit: Fit, epoch: int) -> list[tuple[int, torch.Tensor]]:
    """One epoch's batches: (session, first bins of its windows), the sessions' batches in random order."""
    generator = torch.Generator().manual_seed(fit.seed * 1_000_003 + epoch)
    drawn = [session.train.draw(generator).split(fit.batch_size) for session in sessions]
    batches = [(i, first) for i, firsts in enumerate(drawn) for first in firsts]
    if len(sessions) == 1:
        return batches
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def learning_rate(fit: Fit, epoch: int) -> float:
    """Half a cosine from the first learning rate to a tenth of it."""
    falling = 0.5 * (1 + math.cos(math.pi * epoch / max(1, fit.epochs - 1)))
    return fit.learning_rate * (MIN_LR_FRACTION + (1 - MIN_LR_FRACTION) * falling)


def snapshot(
    family: Family, optimizer: torch.optim.Optimizer, standing: Standing, adversary: Adversary | None
) -> dict[str, Any]:
    """What last.pt holds."""
    content = {"model": family.state_dict(), "optimizer": optimizer.state_dict(), "standing": vars(standing)}
    return content | ({"adversary": adversary.state_dict()} if adversary else {})


def restore(run: Run, family: Family, optimizer: torch.optim.Optimizer, adversary: Adversary | None) -> Standing:
    """Put last.pt back; a run that was ended in its first epoch begins anew."""
    if not (run.path / "last.pt").exists():
        return Standing()
    last = run.load_checkpoint("last.pt")
    family.load_state_dict(last["model"])
    optimizer.load_state_dict(last["optimizer"])
    if adversary:
        adversary.load_state_dict(last["adversary"])
    standing = Standing(**last["standing"])
    run.trim_metrics(standing.epoch)
    return standing


def finish(run: Run, sessions: list[SessionWindows], standing: Standing, min_bins: int) -> None:
    """Fit the behaviour read-out on the best weights, and say in run.json how the run ended."""
    run.info.pop("scores", None)  # of an earlier model, if the run was resumed
    run.info |= {"epochs_done": standing.epoch + 1, "best_epoch": standing.best_epoch}
    if standing.best_epoch >= 0:
        run.info["best_score"] = standing.best
        family = run.restore(run.load_checkpoint("best.pt")["model"])
        if family.behaviour is not None:
            run.info["behaviour_fit"] = fit_behaviour(family, [session.tensors for session in sessions], min_bins)
        if alignment := learnt(family, [session.tensors.recording for session in sessions]):
            run.save_alignment(alignment)
        content = {"model": family.state_dict(), "epoch": standing.best_epoch, "finished": True}
        run.save_checkpoint("best.pt", content)
    run.save_info()
