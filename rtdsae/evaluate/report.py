"""The report of a run: one HTML file that needs nothing else, and the PNGs of its figures."""

import hashlib
import re
import shlex
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from rtdsae.evaluate import words
from rtdsae.evaluate.canvas import save_png, svg
from rtdsae.evaluate.panels import Panel, session_panels, training_panel
from rtdsae.evaluate.score import Scored
from rtdsae.evaluate.versus import check_same_data, versus
from rtdsae.train.run import Run

__all__ = ["check_against", "write_report"]

TEMPLATE = "report.html.jinja"
LONGEST = 100  # bytes of a name: a file's may have 255
END = 9  # of these that are kept of the end: a hash and what is before it


def check_against(run: Run, other: Run) -> None:
    """Refuse another run that this one cannot be held against.

    Raises:
        ConfigError: it was trained on other data.
        TrainingError: it has no model.
    """
    check_same_data(run, other)
    other.model()


def write_report(run: Run, sessions: Sequence[Scored], name: str = "", against: Run | None = None) -> Path:
    """Write `RUN/report.html`, or `RUN/report-NAME.html`, and the figures' PNGs into `RUN/figures`.

    Args:
        run: the run.
        sessions: what `evaluate` found.
        name: what of the run this is, where it is not the run itself: one of its sessions, or another recording.
        against: another run on the same data.

    Returns:
        The HTML file.

    Raises:
        ConfigError: the other run's data are not the same, or no bin is.
        TrainingError: the other run has no model.
    """
    causality = [causality_of(scored, against) for scored in sessions]
    parts = []
    for i, (scored, compared) in enumerate(zip(sessions, causality, strict=True)):
        panels = session_panels(scored)
        folder = run.path / "figures" / slug(name or (scored.name if len(run.info["sessions"]) > 1 else ""))
        for panel in panels:
            if panel.figure is not None:
                save_png(panel.figure, folder / f"{panel.key}.png")
        parts.append(session_part(scored, panels, compared, f"s{i}-" if i else ""))
    training = training_panel(run)
    if training.figure is not None and not name:
        save_png(training.figure, run.path / "figures" / "training.png")
    page = template().render(
        title=run.path.resolve().name + (f" · {name}" if name else ""),
        versions=", ".join(f"{key} {value}" for key, value in run.info["versions"].items()),
        begun=run.info["begun"],
        state=run.info["state"],
        command=run.info["commands"][-1] if run.info["commands"] else "",
        sessions=parts,
        training=panel_part(training, ""),
    )
    path = run.path / (f"report-{slug(name)}.html" if name else "report.html")
    path.write_text(page, encoding="utf-8")
    return path


def template() -> Any:
    """The page's template; whatever it is given is escaped unless it is markup."""
    source = (files("rtdsae.evaluate") / TEMPLATE).read_text(encoding="utf-8")
    return Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True).from_string(
        source
    )


def session_part(scored: Scored, panels: Sequence[Panel], causality: dict[str, Any], prefix: str) -> dict[str, Any]:
    """What the page says of one session."""
    return {
        "prefix": prefix,
        "name": scored.name,
        "summary": words.summary(scored),
        "facts": words.facts(scored),
        "scores": words.score_rows(scored),
        "simpler": words.simpler_in_words(scored),
        "known": words.known_rows(scored),
        "whole": words.whole_rows(scored),
        "unknown": words.unknown(scored),
        "panels": [panel_part(panel, prefix) for panel in panels],
        "causality": causality,
    }


def panel_part(panel: Panel, prefix: str) -> dict[str, Any]:
    """A panel for the page."""
    key = prefix + panel.key
    return {
        "key": key,
        "title": panel.title,
        "reading": panel.reading,
        "svg": None if panel.figure is None else Markup(svg(panel.figure, key)),
        "reason": panel.reason,
    }


def causality_of(scored: Scored, against: Run | None) -> dict[str, Any]:
    """The panel on the price of causality: a table, or how it is got."""
    if against is None:
        return {"rows": [], "kind": counterpart(scored.run), "commands": how_to_compare(scored.run)}
    rows, bins = versus(scored, against)
    kinds = ["causal" if run.config.model.causal else "acausal" for run in (scored.run, against)]
    return {
        "rows": words.compared_rows(rows),
        "bins": bins,
        "this": f"{scored.run.path.resolve().name} ({kinds[0]})",
        "other": f"{against.path.resolve().name} ({kinds[1]})",
    }


def counterpart(run: Run) -> str:
    """What the price of causality is told by: the other kind of run."""
    return "acausal" if run.config.model.causal else "causal"


def how_to_compare(run: Run) -> list[str]:
    """The commands that make the table."""
    model, other = run.config.model, f"{run.path}-{counterpart(run)}"
    switch = ["--set", f"model.causal={str(not model.causal).lower()}"]
    lag = ["--set", "model.z_lag=0"] if model.causal and model.z_lag else []
    return [
        shlex.join(["rtdsae", "train", str(run.path / "config.yaml"), *switch, *lag, "--out", other]),
        shlex.join(["rtdsae", "evaluate", str(run.path), "--against", other]),
    ]


def slug(name: str) -> str:
    """A name as a file's, or as part of one: never another folder, never nothing, never without its end."""
    plain = re.sub(r"[^\w.-]+", "-", name).lstrip(".-").encode()
    if len(plain) > LONGEST:
        plain = plain[: LONGEST - END] + plain[-END:]
    return plain.decode(errors="ignore") or (hashlib.sha256(name.encode()).hexdigest()[:8] if name else "")
