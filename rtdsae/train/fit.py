"""The training loop, read top to bottom.

Every epoch draws from its own seed (windows, masks, noise), so a run that was interrupted and resumed at an epoch's
end goes on bit for bit on a CPU.
"""

import math
from collections.abc import Callable
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
from rtdsae.train.behaviour import fit_behaviour
from rtdsae.train.config import Fit, TrainConfig
from rtdsae.train.objective import loss_terms, valid_scores
from rtdsae.train.run import Run
from rtdsae.train.windows import Tensors, Windows

__all__ = ["Progress", "train"]

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
    recording: Recording,
    report: Callable[[Progress], None],
    *,
    command: str = "",
    resume: bool = False,
) -> Run:
    """Train a model until its epochs or its patience end. KeyboardInterrupt ends it as well, and the run is usable.

    Args:
        path: the run directory to make, or to go on with.
        config: the configuration.
        recording: the prepared recording.
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
    windows, valid = (Windows(recording, split, s + r, r) for split in ("train", "valid"))
    fabric = make_fabric(path, fit)
    make = Run.resume if resume else Run.create
    run = make(path, config, recording, command)
    run.info["too_short"] = windows.too_short + valid.too_short
    tensors = Tensors(recording)

    torch.manual_seed(fit.seed)
    family = run.build()
    train_bins = torch.cat([tensors.counts[a:b] for a, b in windows.segments])
    family.fit_normalisation(train_bins, train_bins[:, tensors.heldin])
    optimizer = torch.optim.AdamW(family.parameters(), lr=fit.learning_rate, weight_decay=fit.weight_decay)
    model, optimizer = fabric.setup(family, optimizer)
    standing = restore(run, family, optimizer) if resume else Standing()

    try:
        for epoch in range(standing.epoch + 1, fit.epochs):
            if standing.epoch - max(standing.best_epoch, config.objective.ramp_epochs) >= fit.patience:
                break
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(fit, epoch)
            ramp = min(1.0, (epoch + 1) / (config.objective.ramp_epochs + 1))
            metrics = train_epoch(fabric, model, family, optimizer, tensors, windows, config, epoch, ramp)
            scores = valid_scores(family, tensors, valid, 4 * fit.batch_size, fabric.device)
            metrics |= {f"valid/{name}": value for name, value in scores.items()}
            metrics["learning_rate"] = learning_rate(fit, epoch)

            standing.epoch = epoch
            score = scores.get("nll_heldout", scores["nll_masked"])
            if score < standing.best:
                standing.best, standing.best_epoch = score, epoch
                run.save_checkpoint("best.pt", {"model": family.state_dict(), "epoch": epoch, "finished": False})
            run.append_metrics({"epoch": epoch, **metrics})
            run.save_checkpoint("last.pt", snapshot(family, optimizer, standing))
            fabric.log_dict(metrics, step=epoch)
            report(Progress(epoch, fit.epochs, metrics, standing.best_epoch))
        run.info["state"] = "finished"
    except KeyboardInterrupt:
        run.info["state"] = "interrupted"
    except TrainingError:
        run.info["state"] = "failed"
        finish(run, tensors, standing, s + r)
        raise
    finish(run, tensors, standing, s + r)
    return run


def make_fabric(path: Path, fit: Fit) -> Fabric:
    """Fabric on the wanted device, with TensorBoard's curves in the run."""
    logger = TensorBoardLogger(path, name="tensorboard", version="")
    try:
        fabric = Fabric(accelerator=fit.accelerator, devices=1, precision=fit.precision, loggers=logger)
    except (MisconfigurationException, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise TrainingError(f"fit.accelerator={fit.accelerator} cannot be had ({reason}): choose cpu or auto") from None
    fabric.launch()
    return fabric


def train_epoch(
    fabric: Fabric,
    model: torch.nn.Module,
    family: Family,
    optimizer: torch.optim.Optimizer,
    tensors: Tensors,
    windows: Windows,
    config: TrainConfig,
    epoch: int,
    ramp: float,
) -> dict[str, float]:
    """One pass over freshly drawn windows: the mean of each loss term."""
    fit = config.fit
    torch.manual_seed(fit.seed * 1_000_003 + epoch)  # masks and noise
    firsts = windows.draw(torch.Generator().manual_seed(fit.seed * 1_000_003 + epoch))
    heldin = tensors.heldin.to(fabric.device)
    sums: dict[str, float] = {}
    for first in firsts.split(fit.batch_size):
        batch = tensors.windows_at(first, windows.bins, fabric.device)
        terms = loss_terms(model, family, batch, heldin, config.objective, ramp)
        if not torch.isfinite(terms["loss"]):
            bad = ", ".join(name for name, value in terms.items() if not torch.isfinite(value))
            raise TrainingError(f"{bad} is not finite in epoch {epoch}: lower fit.learning_rate or fit.clip_norm")
        optimizer.zero_grad()
        fabric.backward(terms["loss"])
        fabric.clip_gradients(model, optimizer, max_norm=fit.clip_norm)
        optimizer.step()
        for name, value in terms.items():
            sums[name] = sums.get(name, 0.0) + float(value.detach()) * len(first) / len(firsts)
    return {f"train/{name}": value for name, value in sums.items()}


def learning_rate(fit: Fit, epoch: int) -> float:
    """Half a cosine from the first learning rate to a tenth of it."""
    falling = 0.5 * (1 + math.cos(math.pi * epoch / max(1, fit.epochs - 1)))
    return fit.learning_rate * (MIN_LR_FRACTION + (1 - MIN_LR_FRACTION) * falling)


def snapshot(family: Family, optimizer: torch.optim.Optimizer, standing: Standing) -> dict[str, Any]:
    """What last.pt holds."""
    return {"model": family.state_dict(), "optimizer": optimizer.state_dict(), "standing": vars(standing)}


def restore(run: Run, family: Family, optimizer: torch.optim.Optimizer) -> Standing:
    """Put last.pt back; a run that was ended in its first epoch begins anew."""
    if not (run.path / "last.pt").exists():
        return Standing()
    last = run.load_checkpoint("last.pt")
    family.load_state_dict(last["model"])
    optimizer.load_state_dict(last["optimizer"])
    standing = Standing(**last["standing"])
    run.trim_metrics(standing.epoch)
    return standing


def finish(run: Run, tensors: Tensors, standing: Standing, min_bins: int) -> None:
    """Fit the behaviour read-out on the best weights, and say in run.json how the run ended."""
    run.info.pop("scores", None)  # of an earlier model, if the run was resumed
    run.info |= {"epochs_done": standing.epoch + 1, "best_epoch": standing.best_epoch}
    if standing.best_epoch >= 0:
        run.info["best_score"] = standing.best
        family = run.restore(run.load_checkpoint("best.pt")["model"])
        if family.behaviour is not None:
            run.info["behaviour_fit"] = fit_behaviour(family, tensors, min_bins)
        content = {"model": family.state_dict(), "epoch": standing.best_epoch, "finished": True}
        run.save_checkpoint("best.pt", content)
    run.save_info()
