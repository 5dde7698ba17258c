"""What comes along with the package: models and configurations, from a checkout or from an installation."""

from pathlib import Path

from rtdsae.errors import ConfigError

__all__ = ["config", "config_file", "model", "models"]


def models() -> dict[str, Path]:
    """The folders of the shipped bundles, by name."""
    return {path.parent.name: path.parent for path in sorted(_folder("models").glob("*/manifest.json"))}


def model(path: Path) -> Path:
    """A bundle's folder: the path itself, or the shipped bundle of that name where there is no such folder.

    Raises:
        ConfigError: it is a name, and neither a folder here nor a shipped bundle has it.
    """
    if path.exists() or str(path) != path.name:
        return path
    if (name := str(path)) not in (there := models()):
        raise ConfigError(f"{name}: no such folder, and no shipped bundle of that name; there are {', '.join(there)}")
    return there[name]


def config_file(path: Path) -> Path:
    """A configuration's file: the path itself, or the shipped one of that name where there is no such file."""
    shipped = _folder("configs") / path
    return shipped if str(path) == path.name and not path.exists() and shipped.is_file() else path


def config(name: str) -> Path:
    """A shipped configuration by its file name.

    Raises:
        ConfigError: there is none of that name.
    """
    path = _folder("configs") / name
    if not path.is_file():
        there = ", ".join(sorted(other.name for other in path.parent.glob("*.*")))
        raise ConfigError(f"there is no configuration {name!r} among those that are shipped: {there or 'none at all'}")
    return path


def _folder(name: str) -> Path:
    package = Path(__file__).parent
    installed = package / "shipped" / name
    return installed if installed.is_dir() else package.parent / name
