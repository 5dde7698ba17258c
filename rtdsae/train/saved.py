"""What a run directory says of itself in plain values, which is read without torch."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rtdsae.errors import TrainingError

__all__ = ["Saved", "flatten"]


@dataclass(frozen=True)
class Saved:
    """config.yaml and run.json.

    Attributes:
        path: the run directory.
        config: the configuration, section by section, as it was written.
        info: the content of run.json.
    """

    path: Path
    config: dict[str, Any]
    info: dict[str, Any]

    @classmethod
    def open(cls, path: Path) -> "Saved":
        """Read both.

        Raises:
            TrainingError: it is not a run directory, or a file of it is damaged.
        """
        try:
            info = json.loads((path / "run.json").read_text())
            config = yaml.safe_load((path / "config.yaml").read_text())
        except (FileNotFoundError, NotADirectoryError) as error:
            missing = "it is a file" if path.exists() else "there is no such folder"
            what = f"it has no {Path(error.filename).name}" if path.is_dir() else missing
            raise TrainingError(f"{path} is not a run: {what}; rtdsae train makes one") from None
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise TrainingError(f"{path} is damaged: {error}") from None
        sections = config.values() if isinstance(config, dict) else [config]
        whole = isinstance(info, dict) and {"dims", "sessions"} <= info.keys()
        if not whole or not all(isinstance(section, dict) for section in sections):
            raise TrainingError(f"{path} is damaged: config.yaml and run.json do not hold what a run saves")
        return cls(path, config, info)


def flatten(tree: dict[str, Any]) -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`."""
    return {f"{section}.{key}": value for section, values in tree.items() for key, value in values.items()}
