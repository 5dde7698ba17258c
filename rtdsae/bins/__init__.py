"""Bins: the one binner, of training, replay and the daemon alike, so that a model meets no bin made by other code.

A stream of samples becomes bins on a grid. Three kinds of stream are known:

    counts     each sample is a bin already
    samples    a regular stream: k samples make a bin, added up or averaged
    events     an irregular stream: a sample is a spike, its value the channel's number

Any chunking of the same samples gives the same bins, bit for bit. The grid begins with the first sample, and every bin
from there on comes out once, in order; what was not recorded comes out as a bin that is not `observed`. Every sample
ends in a bin or in a counter.
"""

from rtdsae.bins.events import EventsBinner
from rtdsae.bins.grid import BinCounters, Bins
from rtdsae.bins.kinds import Kind, input_kind
from rtdsae.bins.regular import RegularBinner

__all__ = ["BinCounters", "Bins", "EventsBinner", "Kind", "RegularBinner", "input_kind"]
