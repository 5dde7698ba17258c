"""Which provider `auto` stands for: the quickest of those that run and give the exported model."""

import logging
import time

import onnxruntime
import pytest
from toy_bundle import Toy

from rtdsae import bundle
from rtdsae.errors import BundleError
from rtdsae.serve import engine
from rtdsae.serve.provider import quickest

ABACUS, CPU = "AbacusExecutionProvider", "CPUExecutionProvider"


@pytest.fixture
def toy(tmp_path):
    return bundle.load(Toy().write(tmp_path / "toy"))


@pytest.fixture
def with_abacus(monkeypatch):
    """A second provider, by the CPU's sessions, and what it does before each step."""
    before = {"abacus": lambda: None, "cpu": lambda: None}
    there = {"abacus": ABACUS, "azure": "AzureExecutionProvider", "cpu": CPU}
    made, step = engine._session, engine.Engine.step
    monkeypatch.setattr("rtdsae.serve.provider.providers", lambda: there)
    monkeypatch.setattr(engine, "providers", lambda: there)
    monkeypatch.setattr(engine, "_session", lambda bundle, name, provider: made(bundle, name, CPU))

    def stepped(self, counts, observed):
        before["abacus" if self.provider == ABACUS else "cpu"]()
        step(self, counts, observed)

    monkeypatch.setattr(engine.Engine, "step", stepped)
    return before


@pytest.mark.parametrize(("slow", "quick"), [("cpu", "abacus"), ("abacus", "cpu")])
def test_the_shorter_step_is_taken(toy, with_abacus, slow, quick, caplog):
    with_abacus[slow] = lambda: time.sleep(0.005)
    with caplog.at_level(logging.INFO):
        assert quickest(toy) == quick
    assert f"provider auto: {quick}; a step takes " in caplog.text
    assert "azure" not in caplog.text


def test_one_that_fails_is_left_out_and_said(toy, with_abacus, caplog):
    def fail():
        raise BundleError("its beads are stuck")

    with_abacus["abacus"] = fail
    with caplog.at_level(logging.INFO):
        assert quickest(toy) == "cpu"
    assert "provider auto: not abacus: its beads are stuck" in caplog.text
    with_abacus["cpu"] = fail
    with pytest.raises(BundleError, match="beads"):
        quickest(toy)


def test_on_this_computer(toy):
    found = quickest(toy)
    assert engine.Engine(toy, found).provider in onnxruntime.get_available_providers()
