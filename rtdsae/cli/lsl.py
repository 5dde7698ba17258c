"""LSL's library, loaded once for the verbs that need it."""

import os

from rtdsae.errors import ConfigError, one_line

__all__ = ["load_lsl", "settings_file"]


def load_lsl() -> None:
    """Loads liblsl, and keeps its own log from stderr where the user has not configured LSL; before its first call.

    Raises:
        ConfigError: it cannot be loaded, or is told of settings that are not there.
    """
    try:
        import pylsl
    except (RuntimeError, OSError) as error:  # pylsl is there, its library is not
        raise ConfigError(
            f"liblsl cannot be loaded (PYLSL_LIB=/path/of/it says where it is): {one_line(error)}"
        ) from None
    if settings_file() is None:
        pylsl.util.set_config_content("[log]\nlevel = -3\n")


def settings_file() -> str | None:
    """The file that liblsl reads its settings from; None where there is none.

    Raises:
        ConfigError: LSLAPICFG names one that is not there; LSL would go on without it, and perhaps on every network.
    """
    if (named := os.environ.get("LSLAPICFG")) and not os.path.isfile(named):
        raise ConfigError(
            f"LSLAPICFG={named}: there is no such file, and LSL would go on without it: give the whole path of its "
            "settings, or unset LSLAPICFG"
        )
    home = os.path.expanduser("~/lsl_api/lsl_api.cfg")  # as it stands where there is no home, as for some services
    places = (named, "lsl_api.cfg", home, "/etc/lsl_api/lsl_api.cfg")
    return next((place for place in places if place and os.path.exists(place)), None)
