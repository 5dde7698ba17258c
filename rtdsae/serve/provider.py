"""Which of ONNX Runtime's execution providers runs a bundle's step soonest on this computer."""

import logging
import time

import numpy as np
import onnxruntime

from rtdsae.bundle import Bundle
from rtdsae.errors import RtdsaeError
from rtdsae.serve.engine import Engine, providers

__all__ = ["AUTO", "quickest"]

log = logging.getLogger(__name__)

AUTO = "auto"
LEFT_OUT = {"azure", "tensorrt"}  # calls a remote computer; builds its engine for minutes
STEPS, WARM_UP = 50, 5
LONGEST_PACE_S = 0.02


def quickest(bundle: Bundle) -> str:
    """What `auto` stands for: the provider with the shortest median step, over some bins' time each.

    Those that cannot run here, or do not give the exported model, are left out with a line in the log.

    Raises:
        BundleError: the bundle does not run on the CPU, which every ONNX Runtime has, either.
    """
    onnxruntime.set_default_logger_severity(4)  # it tells at length what a provider lacks
    engines: dict[str, Engine] = {}
    for candidate in sorted(providers().keys() - LEFT_OUT):
        try:
            engines[candidate] = Engine(bundle, candidate)
        except RtdsaeError as error:
            if candidate == "cpu":
                raise
            log.info("provider auto: not %s: %s", candidate, error)
    if len(engines) == 1:
        return next(iter(engines))
    step_us = {candidate: median_step_us(engine, bundle) for candidate, engine in engines.items()}
    best = min(step_us, key=lambda candidate: step_us[candidate])
    log.info("provider auto: %s; a step takes %s", best, ", ".join(f"{us:.0f} µs on {c}" for c, us in step_us.items()))
    return best


def median_step_us(engine: Engine, bundle: Bundle) -> float:
    """Microseconds of a step at the pace of the bins: in a row they are quicker, with clocks up and caches warm."""
    counts, pace_s = bundle.golden()["x"][0], min(bundle.manifest.bin_width_s, LONGEST_PACE_S)
    took = np.zeros(STEPS)
    for i in range(STEPS):
        time.sleep(pace_s)
        began = time.perf_counter()
        engine.step(counts, True)
        took[i] = time.perf_counter() - began
    return 1e6 * float(np.median(took[WARM_UP:]))
