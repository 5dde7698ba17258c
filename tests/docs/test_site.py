"""The pages as a site: Sphinx makes them without a warning, every link and every name in them included."""

import pydoc
import re
import subprocess
import sys

import pytest
from pages import PAGES, ROOT


@pytest.mark.slow
def test_sphinx_makes_the_pages_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    made = subprocess.run(
        [*command, "-d", tmp_path / "doctrees", ROOT / "docs", tmp_path / "html"],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    for page in PAGES[1:]:
        assert (tmp_path / "html" / f"{page.stem}.html").exists()
    api = (tmp_path / "html" / "api.html").read_text()
    for name in ("rtdsae.client.Subscriber", "rtdsae.recordings.Recording.select", "rtdsae.train.fit.train"):
        assert f'id="{name}"' in api


def test_the_readme_links_to_what_is_there():
    readme = ROOT / "README.md"
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", readme.read_text()):
        assert "://" in target or (ROOT / target).exists(), target


def test_every_name_that_the_reference_describes_is_there():
    names = re.findall(r"^\.\. auto\w+:: (\S+)", (ROOT / "docs/api.md").read_text(), re.MULTILINE)
    assert len(names) > 30
    for name in names:
        assert pydoc.locate(name) is not None, name
