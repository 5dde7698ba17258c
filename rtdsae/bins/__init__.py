"""Bins: the one binner, of training, replay and the daemon alike, so that a model meets no bin made by other code."""

from rtdsae.bins.regular import BinCounters, Bins, EventsBinner, Kind, RegularBinner, input_kind

__all__ = ["BinCounters", "Bins", "EventsBinner", "Kind", "RegularBinner", "input_kind"]
