"""The example subscribers: a test that takes `subscriber` runs with each that this computer can run."""

import os
import shutil

import pytest
from programs import EXAMPLES, SANITIZERS, Program, c_program, js_program


def c(folder):
    program = c_program(EXAMPLES / "subscriber.c", folder, *SANITIZERS)
    return lambda *words: [program, *words]


def js(folder):
    program = js_program(folder)
    return lambda *words: ["node", program, *words]


def m(folder):
    """The MATLAB program, under Octave."""
    jar = os.environ.get("JEROMQ")
    if not (shutil.which("octave-cli") and jar):
        pytest.skip("needs Octave, and JEROMQ set to the path of jeromq.jar")

    def command(*words):
        call = ", ".join(word if word.isdigit() else f"'{word}'" for word in words)
        return ["octave-cli", "--eval", f"addpath('{EXAMPLES}'); javaaddpath('{jar}'); subscriber({call})"]

    return command


@pytest.fixture(scope="session", params=[c, js, m], ids=lambda language: language.__name__)
def command(request, tmp_path_factory):
    return request.param(tmp_path_factory.mktemp(request.param.__name__))


@pytest.fixture
def subscriber(command, tmp_path):
    """`subscriber(endpoint, array, mode[, n])` is a Program."""
    return lambda *words: Program(command(*words), tmp_path)
