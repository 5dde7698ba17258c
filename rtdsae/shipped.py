"""What comes along with the package: models and configurations, from a checkout or from an installation."""

from pathlib import Path

from rtdsae.errors import ConfigError

__all__ = ["config", "model", "models"]


def models() -> dict[str, Path]:
    """The folders of the shipped bundles, by name."""
    return {path.parent.name: path.parent for path in sorted(_folder("models").glob("*/manifest.json"))}


def model(path: Path) -> Path:
    """A bundle's folder: the path itself, or the shipped bundle of that name where there is no such folder."""
    return path if path.exists() else models().get(str(path), path)


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
