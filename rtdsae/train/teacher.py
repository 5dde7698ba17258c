"""Training on what an acausal run made of the same windows, in place of the recorded spikes.

The teacher has seen the future, so what it says of a training bin is nearer to the truth than the spikes of that bin.
The student's inputs are spikes drawn from the teacher's rates, others at every step, and its targets are those rates:
it learns to infer them from the past, and the noise of the recording is not there to be learnt by heart. A student of
the teacher's own sizes begins with its weights. Validation and testing stay with the recorded spikes. Figures:
docs/log.md, 2026-11-29 and -30.
"""

import hashlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from msgspec import structs
from torch import Tensor

from rtdsae.errors import ConfigError, TrainingError
from rtdsae.model.family import Family
from rtdsae.recordings import Recording
from rtdsae.train.config import TrainConfig
from rtdsae.train.failures import memory_explained
from rtdsae.train.run import Run
from rtdsae.train.windows import SessionWindows, Windows

__all__ = ["Teacher"]


class Teacher:
    """A trained run as the teacher of another.

    Args:
        config: the student's configuration, which names it (`data.teacher`).
        recordings: the student's sessions, prepared.

    Attributes:
        hash: SHA-256 of its weights, in hex.

    Raises:
        ConfigError: it cannot teach this student.
        TrainingError: it is no run, is not finished, or is damaged.
    """

    def __init__(self, config: TrainConfig, recordings: Sequence[Recording]) -> None:
        path = Path(config.data.teacher)
        try:
            run = Run.open(path)
            check(run, config, recordings)
            self._family, self._fit = run.model(), config.fit
        except TrainingError as error:
            raise TrainingError(f"data.teacher: {error}") from None
        self.hash = hashlib.sha256((path / "best.pt").read_bytes()).hexdigest()
        self._sessions = [run.data_hashes.index(recording.hash) for recording in recordings]
        theirs = run.config.model
        self._alike = structs.replace(config.model, causal=False, dropout=theirs.dropout) == theirs

    def teach(self, sessions: Sequence[SessionWindows], device: torch.device) -> None:
        """Gives each session's training windows what this makes of them.

        Raises:
            TrainingError: memory does not suffice.
        """
        torch.set_num_threads(self._fit.threads)  # the student's
        for session, mine in zip(sessions, self._sessions, strict=True):
            family = self._family.to(device).use(mine)
            with memory_explained(self._fit, session.train.bins):
                session.expected = expected_counts(family, session, self._fit.windows_at_once)
        self._family.cpu()

    def hand_on(self, student: Family) -> None:
        """Has a student of the same sizes begin with the weights, so that it need not learn the dynamics again.

        What reads an encoder of both directions has another shape in a causal model, and begins as it was.
        """
        if not self._alike:
            return
        own, known = student.state_dict(), self._family.state_dict()
        shared = {name for name in own.keys() & known.keys() if not name.startswith("sessions.")}
        fitting = {name: known[name] for name in shared if known[name].shape == own[name].shape}
        student.load_state_dict(fitting, strict=False)
        for mine, theirs in enumerate(self._sessions):
            student.sessions[mine].load_state_dict(self._family.sessions[theirs].state_dict())


def check(run: Run, config: TrainConfig, recordings: Sequence[Recording]) -> None:
    """Refuse a teacher that knows no better, or other data.

    Raises:
        ConfigError: with the reason.
    """
    where = f"data.teacher={config.data.teacher}"
    if run.config.model.causal:
        raise ConfigError(f"{where} is causal and knows no more than its student: train it with model.causal: false")
    if run.config.model.reconstruction != "poisson":
        raise ConfigError(f"{where} has {run.config.model.reconstruction} counts: a teacher's are poisson")
    for recording, name in zip(recordings, config.data.paths, strict=True):
        if recording.hash not in run.data_hashes:
            raise ConfigError(
                f"{where} was trained on other data than {name}, or with other parts of it kept apart: "
                "data.valid, data.test and data.heldout_every have to be the same"
            )
    theirs, ours = (c.window.anchor_bins + c.window.horizon_bins for c in (run.config, config))
    if theirs > ours:
        raise ConfigError(f"{where} has windows of {theirs} bins, this training of {ours}: a teacher's are no longer")


@torch.no_grad()
def expected_counts(teacher: Family, session: SessionWindows, batch_size: int) -> Tensor:
    """Expected counts in each bin of the training segments, by posterior means: (bins, n_neurons) float16.

    The teacher's windows overlap by half, and a bin is taken from the one whose middle is nearest. Bins that are not
    trained on are 0.
    """
    tensors, bins = session.tensors, teacher.dims.anchor_bins + teacher.dims.horizon_bins
    device, width = teacher.readin.mean.device, teacher.dims.bin_width_s
    found = torch.zeros(tensors.counts.shape, dtype=torch.float16)
    firsts, parts = shares(session.train, bins)
    for some, taken in zip(firsts.split(batch_size), parts.split(batch_size), strict=True):
        batch = tensors.windows_at(some, bins, device)
        x = teacher.readin.normalise(batch.inputs)
        rates = teacher(x, torch.ones_like(x[..., :1]), batch.u, False).outputs.rates
        counts = (rates * width).half().cpu()
        for i, (first, (a, b)) in enumerate(zip(some.tolist(), taken.tolist(), strict=True)):
            found[a:b] = counts[i, a - first : b - first]
    return found


def shares(windows: Windows, bins: int) -> tuple[Tensor, Tensor]:
    """First bins of windows that overlap by half, (n,), and the bins that are taken from each, (n, 2)."""
    firsts: list[int] = []
    parts: list[tuple[int, int]] = []
    for a, b in windows.segments.tolist():
        begins = [*range(a, b - bins, max(1, bins // 2)), b - bins]
        edges = [a, *((one + other + bins) // 2 for one, other in pairwise(begins)), b]
        firsts += begins
        parts += pairwise(edges)
    return torch.tensor(firsts), torch.tensor(parts)
