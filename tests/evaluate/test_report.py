"""The report: one file that needs nothing else, every panel there or explained, whatever the recording holds."""

import contextlib
import dataclasses
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from rtdsae.cli import main
from rtdsae.evaluate.panels import training_panel
from rtdsae.evaluate.report import slug
from rtdsae.recordings import Recording, save
from rtdsae.train.run import Run

CONFIG = """\
model: {{family: {family}, f_dim: 3, z_dim: 2, gen_dim: 9, fac_dim: 5}}
window: {{anchor_bins: 5, horizon_bins: 15}}
fit: {{epochs: 2, accelerator: cpu}}
"""
CHROMIUM = Path("/usr/bin/chromium")
PANELS = ["scores", "rates", "factors", "behaviour", "inputs", "traversals", "since_anchor", "causality", "training"]
CONTINUOUS = {"segments": np.empty((0, 2), int), "conditions": None}
MANY = {"behaviour": np.sin(np.arange(900)[:, None] / (9 + np.arange(7))), "behaviour_labels": tuple("abcdefg")}
BARE = CONTINUOUS | {"behaviour": None, "behaviour_labels": (), "true_rates": None}


def recording(**parts):
    """Neurons that follow a slow wave, in trials of two conditions, with names that are no markup and no formulas."""
    rng = np.random.default_rng(0)
    wave = np.stack([np.sin(np.arange(900) / 9), np.cos(np.arange(900) / 9)], 1)
    rates = np.exp(wave @ rng.normal(size=(2, 8)))
    known = {
        "channels": ("<b>bold</b>", "$x^", "a & b", '"', "ch4", "ch5", "ch6", "ch7"),
        "behaviour": wave,
        "behaviour_labels": ("<i>x</i>", "y"),
        "true_rates": rates / 0.02,
        "segments": np.arange(0, 900, 30)[:, None] + [0, 30],
        "conditions": np.array(["<u>left</u>", "right"])[np.arange(30) % 2],
    }
    return Recording(rng.poisson(rates), 0.02, **(known | parts))


def rtdsae(*args):
    assert main([str(arg) for arg in args]) == 0


def trained(folder, name, family, made, *more):
    """Train a run and write its report."""
    save(made, folder / f"{name}.h5")
    (folder / f"{family}.yaml").write_text(CONFIG.format(family=family))
    rtdsae("train", folder / f"{family}.yaml", "--data", folder / f"{name}.h5", "--out", folder / name, *more)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    trained(folder, "trials <b>", "lfads", recording(), "--set", "data.heldout_every=4")
    trained(folder, "stream", "fhvae", recording(**CONTINUOUS, **MANY, true_rates=None))
    trained(folder, "bare", "dsae_full", recording(**BARE))
    acausal = ("--data", folder / "trials <b>.h5", "--out", folder / "acausal", "--set", "data.heldout_every=4")
    rtdsae("train", folder / "lfads.yaml", *acausal, "--set", "model.causal=false")
    for name in ("stream", "bare"):
        rtdsae("evaluate", folder / name)
    with contextlib.redirect_stdout(io.StringIO()) as said:
        rtdsae("evaluate", folder / "trials <b>", "--against", folder / "acausal", "--json")
    (folder / "said.txt").write_text(said.getvalue())
    return folder


class Page(HTMLParser):
    """What a page holds: elements with their attributes, and each section's text."""

    VOID = ("meta", "br", "link")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.sections: dict[str, str] = {}
        self.svgs: set[str] = set()
        self.open: list[str] = []
        self.now = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.elements.append((tag, attributes))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "section":
            self.now = attributes.get("id", "latents")
        if tag == "svg":
            self.svgs.add(self.now)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag == "section":
            self.now = ""

    def handle_data(self, data):
        self.sections[self.now] = self.sections.get(self.now, "") + data


def page(run, name="report.html"):
    return Page((run / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["trials <b>", "stream", "bare"])
def test_the_file_is_sound_and_needs_nothing_else(runs, name):
    text = (runs / name / "report.html").read_text(encoding="utf-8")
    found = Page(text)
    assert found.open == []
    assert not re.search("https?:|//", re.sub(r"/\*.*?\*/", "", text.replace("</", "")))
    assert not {"script", "img", "link", "iframe", "object"} & {tag for tag, _ in found.elements}
    for _, attributes in found.elements:
        assert "src" not in attributes
        assert attributes.get("href", "#").startswith("#")
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    targets = set(ids)
    assert {attributes["href"][1:] for tag, attributes in found.elements if tag == "a"} <= targets


@pytest.mark.parametrize(
    ("name", "explained"),
    [
        ("trials <b>", {}),
        ("stream", {"causality": "rtdsae train"}),
        ("bare", {"behaviour": "the recording has no behaviour", "causality": "--against"}),
    ],
)
def test_every_panel_is_there_or_says_why_not(runs, name, explained):
    found = page(runs / name)
    assert [key for key in found.sections if key in PANELS] == PANELS
    without = {key for key in PANELS if key not in found.svgs} - {"scores"}
    assert without == set(explained) | ({"causality"} if name == "trials <b>" else set())
    for key, why in explained.items():
        assert "Not shown: " in found.sections[key]
        assert why in found.sections[key]
    drawn = {path.stem for path in (runs / name / "figures").glob("*.png")}
    assert drawn == found.svgs - {""}


def test_what_is_shown_of_rates_depends_on_what_is_known(runs):
    save(recording(true_rates=None), runs / "no truth.h5")
    rtdsae("evaluate", runs / "trials <b>", "--data", runs / "no truth.h5")
    (written,) = (runs / "trials <b>").glob("report-no-truth-*.html")
    other = page(runs / "trials <b>", written.name)
    titles = [page(runs / name).sections["rates"].split("\n")[1].strip() for name in ("trials <b>", "bare")]
    assert titles == ["Rates against the truth", "Rates and spikes"]
    assert "Rates against PSTHs, by condition" in other.sections["rates"]
    assert "nothing of it is left to fit on" in other.sections["scores"]
    assert "trials <b> · no truth" in other.sections[""]


def test_files_of_one_name_do_not_share_a_report(runs, capsys):
    whole = recording(**BARE)
    for bins in (600, 900):
        (runs / str(bins)).mkdir()
        save(Recording(whole.counts[:bins], 0.02, channels=whole.channels), runs / str(bins) / "day.h5")
        rtdsae("evaluate", runs / "bare", "--data", runs / str(bins) / "day.h5")
    written = re.findall(r"report: (.*)", capsys.readouterr().out)
    for path, bins in zip(written, (600, 900), strict=True):
        assert f"<dd>{bins} of 20 ms" in Path(path).read_text()


def test_more_columns_than_a_figure_has_rows_are_said_to_be_more(runs):
    assert "The first 6 of 7 columns." in (runs / "stream" / "report.html").read_text()
    assert "columns." not in (runs / "trials <b>" / "report.html").read_text()


def test_scores_are_those_of_json_beside_their_null_models(runs):
    lines = (runs / "said.txt").read_text().splitlines()
    assert lines[-2] == f"report: {runs / 'trials <b>' / 'report.html'}"
    scores, shown = json.loads(lines[-1]), page(runs / "trials <b>").sections["scores"]
    simpler = scores["references"]
    assert {name: list(some) for name, some in simpler.items()} == {
        "co_bps": ["glm"],
        "r2_behaviour": ["shifted", "ridge"],
        "r2_true_rates": ["smoothed", "psth"],
    }
    known = page(runs / "trials <b>").sections["latents"]
    for value in [*scores["latents"]["probe_f_series"].values(), *scores["latents"]["probe_z_series"].values()]:
        assert f"{value:.3f}".replace("-", "−") in known
    values = [scores["co_bps"], scores["bps"], scores["r2_true_rates"], scores["r2_behaviour"]["mean"]]
    values += [value for some in simpler.values() for value in some.values()]
    for value in values:
        assert f"{value:.3f}".replace("-", "−") in shown
    assert simpler["r2_behaviour"]["shifted"] < simpler["r2_behaviour"]["ridge"]


def test_names_are_shown_as_they_are_and_are_no_markup(runs):
    found = page(runs / "trials <b>")
    whole = "".join(found.sections.values())
    assert "trials <b>" in whole
    assert "<i>x</i>" in found.sections["behaviour"]
    assert "<u>left</u>" in found.sections["factors"]
    assert "<b>bold</b>" in "".join(page(runs / name).sections["rates"] for name in ("trials <b>", "stream", "bare"))
    assert not {"i", "u"} & {tag for tag, _ in found.elements}


def test_the_price_of_causality_is_a_ratio_on_the_same_bins(runs):
    shown = page(runs / "trials <b>").sections["causality"]
    assert "trials <b> (causal)" in shown
    assert "acausal (acausal)" in shown
    bins = 6 * (30 - 5)
    assert f"Both on the same {bins} bins" in shown
    assert len(re.findall(r"\d\.\d{3}", shown)) >= 2 * 6  # co-bps, bps, three of behaviour, true rates


def test_an_acausal_reference_has_a_report_and_wants_a_causal_one(runs):
    rtdsae("evaluate", runs / "acausal")
    shown = page(runs / "acausal").sections
    assert "Train the causal counterpart" in shown["causality"]
    assert "--set model.causal=true" in shown["causality"]
    assert "not anchored" in shown["since_anchor"]


def test_a_run_is_the_same_report_each_time(runs):
    number = r"-?\d+\.\d+"  # the last digits of a sum depend on where its summands lie in memory
    first = (runs / "bare" / "report.html").read_text()
    rtdsae("evaluate", runs / "bare")
    second = (runs / "bare" / "report.html").read_text()
    assert re.split(number, second) == re.split(number, first)
    numbers = [np.array(re.findall(number, text), float) for text in (first, second)]
    np.testing.assert_allclose(*numbers, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--against", "bare"), "bare was trained on other data than"),
        (("--against", "stream"), "is the run itself"),
        (("--against", "nowhere"), "nowhere is not a run"),
        (("--against", "empty"), "has no best.pt"),
        (("--against", "bare", "--data", "bare.h5"), "leave --data away"),
    ],
)
def test_what_cannot_be_compared_is_refused_with_one_line(runs, capsys, args, said, monkeypatch):
    monkeypatch.chdir(runs)
    if not Path("empty").exists():
        shutil.copytree("stream", "empty")
        Path("empty/best.pt").unlink()
    before = {path: path.read_bytes() for path in Path("stream").rglob("*") if path.is_file()}
    assert main(["evaluate", "stream", *args]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert said in err
    assert {path: path.read_bytes() for path in Path("stream").rglob("*") if path.is_file()} == before


def test_training_curves_that_cannot_be_read_are_explained(runs, tmp_path):
    run = Run.open(runs / "bare")
    assert training_panel(run).figure is not None
    for text in ("epoch,train/nll\n0,none\n", "epoch,train/nll\n", "", None):
        run.path = tmp_path
        if text is None:
            (tmp_path / "metrics.csv").unlink()
        else:
            (tmp_path / "metrics.csv").write_text(text)
        panel = training_panel(run)
        assert panel.figure is None
        assert "metrics.csv cannot be read" in panel.reason


@pytest.mark.slow
def test_two_sessions_are_two_parts_of_one_page(tmp_path):
    (tmp_path / "c.yaml").write_text(CONFIG.format(family="lfads"))
    data = []
    for name in ("monday", "tuesday"):
        save(dataclasses.replace(recording(**CONTINUOUS), session=name), tmp_path / f"{name}.h5")
        data += ["--data", tmp_path / f"{name}.h5"]
    rtdsae("train", tmp_path / "c.yaml", *data, "--out", tmp_path / "two", "--set", "model.readin_dim=3")
    rtdsae("evaluate", tmp_path / "two")
    found = page(tmp_path / "two")
    assert {"rates", "s1-rates", "training"} <= found.svgs
    ids = [attributes["id"] for tag, attributes in found.elements if tag == "section" and "id" in attributes]
    assert len(ids) == len(set(ids)) == 2 * 8 + 1
    assert (tmp_path / "two" / "figures" / "tuesday" / "rates.png").exists()


def test_a_name_becomes_part_of_a_file_name():
    assert slug("../a b/c.h5") == "a-b-c.h5"
    assert slug("月曜日") == "月曜日"
    assert slug("..") != slug("***")
    assert min(map(len, (slug(".."), slug("***")))) == 8
    assert len(slug("月" * 200).encode()) <= 100
    assert slug("") == ""


@pytest.mark.parametrize("stem", ["day" * 30 + ".5", "day" * 60, "月" * 80])
def test_a_long_name_keeps_the_hash_that_tells_it_from_another(stem):
    names = [slug(f"{stem} {digits}") for digits in ("01234567", "89abcdef")]
    assert [name[-9:] for name in names] == ["-01234567", "-89abcdef"]
    assert max(len(name.encode()) for name in names) <= 100


# in a real browser ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is not installed")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    flags += ["--disable-component-update", "--disable-sync"]
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=str(CHROMIUM), args=flags)
        yield chromium
        chromium.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["trials <b>", "stream", "bare"])
def test_a_browser_without_a_network_shows_it(runs, browser, name, scheme):
    context = browser.new_context(color_scheme=scheme, offline=True)
    shown = context.new_page()
    said, asked = [], []
    shown.on("console", lambda message: said.append(message.text))
    shown.on("pageerror", lambda error: said.append(str(error)))
    shown.on("request", lambda request: asked.append(request.url))
    for width in (1280, 390):
        shown.set_viewport_size({"width": width, "height": 800})
        shown.goto((runs / name / "report.html").as_uri())
        assert shown.evaluate("document.documentElement.scrollWidth") <= width
        boxes = shown.evaluate(
            "[...document.querySelectorAll('figure svg')].map(e => e.getBoundingClientRect().toJSON())"
        )
        assert len(boxes) >= 6
        assert min(box["height"] for box in boxes) > width / 8
        assert max(box["right"] for box in boxes) <= width  # no figure is to be moved sideways
    paper, ink = shown.evaluate("(s => [s.backgroundColor, s.color])(getComputedStyle(document.body))")
    bright = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (paper, ink)]
    assert (bright[0] > bright[1]) == (scheme == "light")
    assert said == []
    assert len(asked) == 2  # the file itself, at each width
    context.close()
