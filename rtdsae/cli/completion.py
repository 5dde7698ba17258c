"""The verb completion: what a shell needs to complete verbs, flags and their values."""

import importlib
from typing import Literal

import msgspec
from tyro.conf import Positional

__all__ = ["Completion"]


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """Print a script that lets a shell complete verbs and flags.

    bash: rtdsae completion bash > ~/.local/share/bash-completion/completions/rtdsae

    zsh:  rtdsae completion zsh > DIR/_rtdsae, where DIR is in $fpath

    fish: rtdsae completion fish > ~/.config/fish/completions/rtdsae.fish
    """

    shell: Positional[Literal["bash", "zsh", "fish"]]
    """For which shell."""

    def run(self) -> None:
        """Prints it."""
        import tyro.extras

        from rtdsae.cli import TYRO, VERBS

        verbs = {verb: getattr(importlib.import_module(module), name) for verb, (module, name, _) in VERBS.items()}
        asked = ["--tyro-print-completion", self.shell]
        try:
            tyro.extras.subcommand_cli_from_dict(verbs, prog="rtdsae", args=asked, config=TYRO)
        except SystemExit as stop:  # tyro leaves the program when it has printed
            if stop.code:
                raise
