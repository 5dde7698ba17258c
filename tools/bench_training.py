"""Training throughput beside lfads-torch, in blocks that take turns, with the same sizes, data and batch.

    python tools/bench_training.py [--lfads-torch DIR | --family NAME] [--batch 64] [--blocks 6] [--steps 8]

DIR is a checkout of lfads-torch (github.com/arsedler9/lfads-torch); pytorch_lightning and torchmetrics have to be
importable for it. Without it rtdsae is measured alone, by any family. Data: generated neurons of a chaotic network, 40
seen and 10 held out, trials of 100 bins. A step is all that either tool does with a batch: augmentation, forward, loss,
backward, clipping, AdamW. The subjects, each in a process of its own:

    shipped    lfads-torch as it comes: encoders in both directions, all 100 bins decoded
    strict     lfads-torch made causal: 20 bins for the initial condition, the others decoded and scored, forward
               controller input without lag
    rtdsae     causal-split LFADS, or another family in its own sizes, 20 anchor bins and 80 modelled
    steps      the same, but step after step, differentiated by torch: what whole windows at once save

Then the floating-point operations of a step's matrix products, this machine's rate of them, and the fraction of that
rate that training reaches. Rates are trials a second: medians over the blocks. The last line is JSON.
"""

import argparse
import gc
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args
from unittest import mock

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from rtdsae.model.families import ModelConfig, lfads, make_family
from rtdsae.recordings import Recording, synthetic
from rtdsae.train.average import Averaged
from rtdsae.train.config import Data, Fit, Objective, TrainConfig, Window
from rtdsae.train.fit import Training, keep_memory, train_epoch
from rtdsae.train.objective import Loss
from rtdsae.train.processes import make_fabric
from rtdsae.train.sessions import dims_of
from rtdsae.train.windows import session_windows

BINS, ANCHOR, SEEN = 100, 20, 40
SIZES = {"gen_dim": 200, "fac_dim": 40, "con_dim": 64, "ci_enc_dim": 64, "ic_enc_dim": 64}
MODELS = {str(config.__struct_config__.tag): config for config in get_args(ModelConfig)}
F_DIM, Z_DIM, DROPOUT, HIDDEN = 64, 4, 0.3, 0.3
SUBJECTS, OURS = ("shipped", "strict", "rtdsae", "steps"), ("rtdsae", "steps")

Block = Callable[[], None]  # trains on so many steps


def main() -> None:
    """Measure and print; or, as the process of one subject, train when told to."""
    args = arguments()
    warnings.simplefilter("ignore")
    torch.set_num_threads(args.threads)
    if args.subject:
        serve(args)
        return
    subjects = {name: Subject(name) for name in SUBJECTS if args.lfads_torch or name in OURS}
    taken: dict[str, list[float]] = {name: [] for name in subjects}
    for i in range(args.blocks):
        for name, subject in subjects.items() if i % 2 else reversed(subjects.items()):
            taken[name].append(subject.block())
    for subject in subjects.values():
        subject.end()
    print(json.dumps(report(args, taken, args.batch * args.steps)))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lfads-torch", type=Path, metavar="DIR")
    parser.add_argument("--family", choices=sorted(MODELS), default="lfads")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--subject", choices=SUBJECTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if min(args.batch, args.blocks, args.steps, args.threads) < 1:
        parser.error("--batch, --blocks, --steps and --threads must be 1 or more")
    if args.lfads_torch and args.family != "lfads":
        parser.error(f"--family {args.family}: lfads-torch has LFADS alone")
    check_checkout(parser, args.lfads_torch)
    return args


def check_checkout(parser: argparse.ArgumentParser, lfads_torch: Path | None) -> None:
    """Refuses what is no checkout of lfads-torch."""
    if lfads_torch and not (lfads_torch / "lfads_torch").is_dir():
        parser.error(f"--lfads-torch {lfads_torch}: there is no lfads_torch/ in it, as in a checkout of lfads-torch")


class Subject:
    """A process that trains one of them, a block at a time: what one does to its memory is nothing to the others."""

    def __init__(self, name: str) -> None:
        command = [sys.executable, *sys.argv, "--subject", name]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.block()  # to warm up

    def block(self) -> float:
        """Trains on a block: its seconds."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        return float(answer) if answer else sys.exit("a subject has ended: see above")

    def end(self) -> None:
        """Ends it."""
        self.process.communicate()


def serve(args: argparse.Namespace) -> None:
    """Trains on a block for each line on stdin, and answers with its seconds."""
    data = recording(args.batch * args.steps)
    if args.subject in OURS:
        keep_memory()  # as `train` does
        gc.freeze()
        block = ours(data, args.family, args.batch)
        block = by_steps(block) if args.subject == "steps" else block
    else:
        sys.path.insert(0, str(args.lfads_torch))
        block = theirs(data, args.batch, strict=args.subject == "strict")
    for _ in sys.stdin:
        begun = time.perf_counter()
        block()
        print(time.perf_counter() - begun, flush=True)


def recording(n: int) -> Recording:
    """So many trials to train on, and a few more."""
    whole = synthetic.chaotic_rnn()
    trials = whole.counts.reshape(-1, BINS, whole.n_channels)
    counts = np.concatenate([trials] * (-(-(n + 8) // len(trials))))[: n + 8]
    firsts = BINS * np.arange(len(counts))
    return Recording(
        counts.reshape(-1, whole.n_channels),
        bin_width_s=whole.bin_width_s,
        segments=np.stack([firsts, firsts + BINS], 1),
        splits=np.array(["train"] * n + ["valid"] * 8),
        heldout=np.arange(whole.n_channels) >= SEEN,
    )


# rtdsae ---------------------------------------------------------------------------------------------------------------


def configuration(family: str, batch: int) -> TrainConfig:
    """A family's, with lfads-torch's sizes where it is LFADS."""
    sizes = SIZES if family == "lfads" else {}
    return TrainConfig(
        model=MODELS[family](f_dim=F_DIM, z_dim=Z_DIM, dropout=DROPOUT, **sizes),
        data=Data(path="generated"),
        window=Window(anchor_bins=ANCHOR, horizon_bins=BINS - ANCHOR),
        objective=Objective(coordinated_dropout=HIDDEN),
        fit=Fit(batch_size=batch, clip_norm=200.0, accelerator="cpu"),
    )


def ours(data: Recording, name: str, batch: int) -> Block:
    """One epoch by the training loop."""
    config = configuration(name, batch)
    sessions, family = session_windows([data], config), make_family(config.model, dims_of([data], config))
    fabric = make_fabric(config.fit)
    loss, optimizer = fabric.setup(Loss(family, config.objective), torch.optim.AdamW(family.parameters()))
    training = Training(config, sessions, fabric, family, loss, optimizer, Averaged(family))
    epochs = iter(range(1_000_000))

    def block() -> None:
        train_epoch(training, next(epochs))

    return block


def by_steps(block: Block) -> Block:
    """The same without what is differentiated by hand."""

    def slowly() -> None:
        with (
            mock.patch.object(lfads, "at_once", return_value=False),
            mock.patch("rtdsae.model.cells.at_once", return_value=False),
        ):
            block()

    return slowly


# lfads-torch ----------------------------------------------------------------------------------------------------------


def theirs(data: Recording, batch: int, *, strict: bool) -> Block:
    """The same number of steps by lfads-torch's model, loss and augmentation, in a bare loop."""
    from lfads_torch.tuples import SessionBatch

    model = lfads_torch_model(data.n_channels, strict=strict)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    trials = torch.from_numpy(data.counts.reshape(-1, BINS, data.n_channels).astype(np.float32))[:-8]
    first = ANCHOR if strict else 0

    def block() -> None:
        for x in trials[torch.randperm(len(trials))].split(batch):
            nothing = x[:, first:, :0]
            made = SessionBatch(x[..., :SEEN], x[:, first:], nothing, nothing, torch.ones_like(x[..., :SEEN]))
            optimizer.zero_grad()
            model.training_step({0: (made, ())}, 0).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 200.0)
            optimizer.step()

    return block


def lfads_torch_model(n_neurons: int, *, strict: bool) -> Any:
    """Its LFADS, with the settings of its configs/model/nlb_mc_maze.yaml but for the sizes."""
    from lfads_torch.model import LFADS
    from lfads_torch.modules import augmentations, priors, recons
    from lfads_torch.modules.readin_readout import FanInLinear

    hide = augmentations.CoordinatedDropout(HIDDEN, 0.0, ANCHOR if strict else 0)
    numbers = {
        name: 0.0 for name in ("l2_ic_enc_scale", "l2_ci_enc_scale", "l2_gen_scale", "l2_con_scale", "weight_decay")
    }
    numbers |= {"kl_ic_scale": 1e-7, "kl_co_scale": 1e-7, "lr_init": 4e-3, "lr_stop": 1e-5, "lr_decay": 0.95}
    numbers |= {"lr_adam_beta1": 0.9, "lr_adam_beta2": 0.999, "lr_adam_epsilon": 1e-8, "ic_post_var_min": 1e-4}
    counts = {"l2_start_epoch": 0, "l2_increase_epoch": 80, "kl_start_epoch": 0, "kl_increase_epoch": 80}
    model = LFADS(
        encod_data_dim=SEEN,
        encod_seq_len=BINS,
        recon_seq_len=BINS - ANCHOR if strict else BINS,
        ext_input_dim=0,
        ic_enc_seq_len=0,
        ci_lag=0 if strict else 1,
        co_dim=Z_DIM,
        ic_dim=F_DIM,
        dropout_rate=DROPOUT,
        reconstruction=torch.nn.ModuleList([recons.Poisson()]),
        variational=True,
        co_prior=priors.AutoregressiveMultivariateNormal(10.0, 0.1, Z_DIM),
        ic_prior=priors.MultivariateNormal(0, 0.1, F_DIM),
        cell_clip=5.0,
        train_aug_stack=augmentations.AugmentationStack([hide], [0], [0]),
        infer_aug_stack=augmentations.AugmentationStack(),
        readin=torch.nn.ModuleList([torch.nn.Identity()]),
        readout=torch.nn.ModuleList([FanInLinear(SIZES["fac_dim"], n_neurons)]),
        loss_scale=1e4,
        recon_reduce_mean=True,
        lr_scheduler=False,
        lr_patience=6,
        **SIZES,
        **numbers,
        **counts,
    )
    if strict:
        make_causal(model)
    return model


def make_causal(model: Any) -> None:
    """The encoder sees 20 bins for the initial condition, and for bin t what came up to t."""
    from lfads_torch.modules.decoder import Decoder
    from lfads_torch.modules.recurrent import ClippedGRU

    encoder, hps = model.encoder, model.hparams
    encoder.ci_enc.fwd_gru = encoder.ci_enc.bwd_gru = ClippedGRU(SEEN, SIZES["ci_enc_dim"], hps.cell_clip)
    encoder.ci_enc_h0 = torch.nn.Parameter(torch.zeros(1, SIZES["ci_enc_dim"]))

    def forward(data: torch.Tensor) -> tuple[torch.Tensor, ...]:
        seen = encoder.dropout(data)
        _, last = encoder.ic_enc(seen[:, :ANCHOR], torch.tile(encoder.ic_enc_h0, (1, len(data), 1)))
        mean, logvar = encoder.ic_linear(encoder.dropout(torch.cat([*last], 1))).split(F_DIM, 1)
        ci, _ = encoder.ci_enc.fwd_gru(seen, encoder.ci_enc_h0.expand(len(data), -1))
        return mean, torch.sqrt(torch.exp(logvar) + hps.ic_post_var_min), ci[:, ANCHOR:]

    encoder.forward = forward
    hps.ci_enc_dim = SIZES["ci_enc_dim"] // 2  # the decoder takes it for one of two directions
    model.decoder = Decoder(hps)


# figures --------------------------------------------------------------------------------------------------------------


def report(args: argparse.Namespace, taken: dict[str, list[float]], n: int) -> dict[str, Any]:
    """Rates and ratios, printed as they are made."""
    rates = {name: n / float(np.median(seconds)) for name, seconds in taken.items()}
    seconds = np.array(taken["rtdsae"])
    result: dict[str, Any] = {"batch": args.batch, "threads": args.threads, "trials_per_s": rates, "ratios": {}}
    for name, rate in rates.items():
        ratios = np.array(taken[name]) / seconds  # of blocks beside one another
        ms = 1e3 * np.median(taken[name]) / args.steps
        line = f"{name:8} {rate:7.0f} trials/s  {ms:6.1f} ms a step"
        if name != "rtdsae":
            low, middle, high = (float(np.percentile(ratios, q)) for q in (5, 50, 95))
            result["ratios"][name] = [low, middle, high]
            line += f"   rtdsae is {middle:.2f} times as fast ({low:.2f} to {high:.2f})"
        print(line)
    flops, rate = count_flops(args.family, args.batch), matrix_rate(args.batch)
    reached = flops * args.steps / float(np.median(seconds)) / rate
    print(
        f"a step's products: {flops / 1e9:.2f} GFLOP; matrix rate {rate / 1e9:.0f} GFLOP/s; reached {reached:.2f} of it"
    )
    return result | {"flops": flops, "matrix_rate": rate, "reached": reached}


def count_flops(family: str, batch: int) -> int:
    """Of the matrix products of one training step, forwards and backwards, as the readable way multiplies."""
    counter = FlopCounterMode(display=False)
    block = by_steps(ours(recording(batch), family, batch))
    with counter:
        block()
    return int(counter.get_total_flops())


def matrix_rate(batch: int) -> float:
    """Floating-point operations a second in the product that most of the work is: states times recurrent weights."""
    g = SIZES["gen_dim"]
    a, w, out = torch.randn(batch, g), torch.randn(g, 3 * g), torch.empty(batch, 3 * g)
    rates = []
    for _ in range(30):
        begun = time.perf_counter()
        for _ in range(50):
            torch.mm(a, w, out=out)
        rates.append(50 * 2 * batch * g * 3 * g / (time.perf_counter() - begun))
    return float(np.median(rates))


if __name__ == "__main__":
    main()
