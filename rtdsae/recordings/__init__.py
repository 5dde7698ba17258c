"""Recordings: what every file reader makes and training reads."""

from rtdsae.recordings.files import load, save
from rtdsae.recordings.recording import Recording

__all__ = ["Recording", "load", "save"]
