"""LSL's library, loaded once for the verbs that need it."""

import os
from pathlib import Path

from rtdsae.errors import ConfigError, one_line

__all__ = ["load_lsl"]


def load_lsl() -> None:
    """Loads liblsl, and keeps its own log from stderr where the user has not configured LSL; before its first call.

    Raises:
        ConfigError: it cannot be loaded.
    """
    try:
        import pylsl
    except (RuntimeError, OSError) as error:  # pylsl is there, its library is not
        raise ConfigError(
            f"liblsl cannot be loaded (PYLSL_LIB=/path/of/it says where it is): {one_line(error)}"
        ) from None
    places = (Path("lsl_api.cfg"), Path("~/lsl_api/lsl_api.cfg").expanduser(), Path("/etc/lsl_api/lsl_api.cfg"))
    if "LSLAPICFG" in os.environ or any(place.exists() for place in places):
        return
    pylsl.util.set_config_content("[log]\nlevel = -3\n")
