"""What the package promises as a whole: light imports, true names, a README whose tree is the tree."""

import importlib
import importlib.util
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import rtdsae

ROOT = Path(rtdsae.__file__).parent.parent


def loaded_by(statement: str) -> set[str]:
    """The top-level modules of a fresh interpreter after one statement."""
    code = f"{statement}\nimport sys; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_import_rtdsae_is_free():
    assert loaded_by("import rtdsae").isdisjoint({"numpy", "zmq", "msgspec", "torch", "tyro"})


def test_a_model_leaves_no_trace_for_onnx_runtimes_maker(tmp_path):
    """Its telemetry keeps a device id and what is still to be sent in the home folder, but not where CI is set."""
    bundle = ROOT / "models" / "lfads_lorenz"
    code = f"from rtdsae import bundle; from rtdsae.serve.engine import Engine; Engine(bundle.load({str(bundle)!r}))"
    left_out = ("CI", "GITHUB_ACTIONS", "XDG_CACHE_HOME")
    env = {k: v for k, v in os.environ.items() if k not in left_out and not k.startswith("ORT_")}
    subprocess.run([sys.executable, "-c", code], env=env | {"HOME": str(tmp_path)}, check=True)
    assert not list(tmp_path.rglob("*"))


def test_runs_are_compared_without_torch():
    """Which takes seconds to load."""
    assert loaded_by("import rtdsae.train.runs").isdisjoint({"torch", "lightning_fabric", "sklearn", "scipy", "numpy"})


@pytest.mark.parametrize("module", ["rtdsae.client", "rtdsae.serve.daemon", "rtdsae.play", "rtdsae.recordings"])
def test_the_live_side_never_imports_torch(module):
    assert loaded_by(f"import {module}").isdisjoint({"torch", "lightning_fabric", "sklearn", "matplotlib"})


def test_the_client_needs_numpy_and_pyzmq_only():
    others = ["msgspec", "yaml", "tyro", "torch", "pylsl", "onnxruntime", "h5py"]
    blocked = f"import sys; sys.modules.update(dict.fromkeys({others}))"
    assert {"numpy", "zmq"} <= loaded_by(f"{blocked}; from rtdsae import Subscriber")


def test_every_public_name_exists():
    for module in pkgutil.walk_packages(rtdsae.__path__, "rtdsae."):
        needs_ray = module.name in (
            "rtdsae.train.cluster",
            "rtdsae.train.search",
            "rtdsae.train.trial",
        )  # an extra that the set-up leaves out
        if module.name == "rtdsae.__main__" or (needs_ray and importlib.util.find_spec("ray") is None):
            continue
        loaded = importlib.import_module(module.name)
        for name in getattr(loaded, "__all__", ()):
            assert hasattr(loaded, name), f"{module.name}.{name}"


def test_the_readmes_tree_is_the_tree():
    tree = (ROOT / "README.md").read_text().split("## The house")[1]
    named = set(re.findall(r"[\w.-]+\.(?:py|sh|yaml|md)\b", tree))
    files = [path for folder in ("rtdsae", "configs", "tools") for path in (ROOT / folder).rglob("*.*")]
    here = {path.name for path in files if path.suffix in (".py", ".sh", ".yaml")} - {"__init__.py", "__main__.py"}
    assert here - named == set(), "files that the README does not name"
    assert {name for name in named if name.endswith((".py", ".sh", ".yaml"))} - here == set(), "named, but not there"


def test_the_changelog_and_the_version_agree():
    assert f'version = "{rtdsae.__version__}"' in (ROOT / "pyproject.toml").read_text()
    assert "## [Unreleased]" in (ROOT / "CHANGELOG.md").read_text()
