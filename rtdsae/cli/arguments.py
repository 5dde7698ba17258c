"""How an argument that may be left out is shown in a verb's help."""

from typing import Any

from tyro.conf import arg

__all__ = ["unset"]


def unset(metavar: str, default: str = "") -> Any:
    """Annotation of an argument that is None, or empty, unless given.

    Args:
        metavar: what stands for its value; in brackets where it has no flag.
        default: what counts then, in words.
    """
    return arg(metavar=metavar, help_behavior_hint=f"(default: {default})" if default else "")
