"""What comes along with the package: models and configurations, from a checkout or from an installation."""

from pathlib import Path

from rtdsae.errors import ConfigError

__all__ = ["config", "config_file", "folder", "model", "models"]


def models() -> dict[str, Path]:
    """The folders of the shipped bundles, by name."""
    return {path.parent.name: path.parent for path in sorted(folder("models").glob("*/manifest.json"))}


def model(path: Path) -> Path:
    """A bundle's folder: the path itself, or where it is not there the shipped bundle, `NAME` or `models/NAME`.

    Raises:
        ConfigError: it is a name, and neither a folder here nor a shipped bundle has it.
    """
    if path.exists():
        return path
    there = models()
    if path.name in there and _may_be_shipped(path, "models"):
        return there[path.name]
    if str(path) == path.name:
        raise ConfigError(f"{path}: no such folder, and no shipped bundle of that name; there are {', '.join(there)}")
    return path


def config_file(path: Path) -> Path:
    """A configuration's file: the path itself, or where it is not there the shipped one, `NAME` or `configs/NAME`."""
    file = folder("configs") / path.name
    return file if not path.exists() and file.is_file() and _may_be_shipped(path, "configs") else path


def config(name: str) -> Path:
    """A shipped configuration by its file name.

    Raises:
        ConfigError: there is none of that name.
    """
    path = folder("configs") / name
    if not path.is_file():
        there = ", ".join(sorted(other.name for other in path.parent.glob("*.*")))
        raise ConfigError(f"there is no configuration {name!r} among those that are shipped: {there or 'none at all'}")
    return path


def folder(name: str) -> Path:
    """Where the shipped `models` or `configs` lie."""
    package = Path(__file__).parent
    installed = package / "shipped" / name
    return installed if installed.is_dir() else package.parent / name


def _may_be_shipped(path: Path, kind: str) -> bool:
    """Whether it is a name, or is where a checkout has what is shipped."""
    return path in (Path(path.name), Path(kind, path.name))
