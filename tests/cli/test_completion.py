"""What a shell completes, asked of a real bash."""

import subprocess
import sys

import pytest

from rtdsae.cli import VERBS, main

ASK = r"""
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(( $# - 1 ))
function=$(complete -p rtdsae | sed 's/.*-F \([^ ]*\).*/\1/')
$function rtdsae "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("completion") / "rtdsae.bash"
    command = [sys.executable, "-m", "rtdsae", "completion", "bash"]
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    path.write_text(said.stdout)
    return path


def completed(script, *words):
    said = subprocess.run(["bash", "-c", ASK, "ask", script, *words], capture_output=True, text=True, check=True)
    return set(said.stdout.split())


def test_verbs_are_completed(script):
    assert completed(script, "rtdsae", "") >= set(VERBS)
    assert completed(script, "rtdsae", "sea") == {"search"}


def test_flags_are_completed(script):
    assert completed(script, "rtdsae", "serve", "--pu") == {"--pub", "--publish"}


def test_the_choices_of_a_flag_are_completed(script):
    assert completed(script, "rtdsae", "serve", "--wake", "") >= {"warm", "poll", "off"}


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_a_script_too(shell, capsys):
    assert main(["completion", shell]) == 0
    said = capsys.readouterr().out
    assert "rtdsae" in said
    assert all(verb in said for verb in VERBS)


def test_an_unknown_shell_is_one_line(capsys):
    assert main(["completion", "ksh"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "bash" in said
