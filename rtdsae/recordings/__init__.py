"""Recordings: what every file reader makes and training reads."""

from rtdsae.recordings.files import load, load_original, save
from rtdsae.recordings.original import Original
from rtdsae.recordings.recording import Recording

__all__ = ["Original", "Recording", "load", "load_original", "save"]
