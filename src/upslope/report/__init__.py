"""The run folder and its log, and the trackers that metrics go to beside it."""

from upslope.report.run import Run
from upslope.report.trackers import Tracker, Trackers, open_trackers

__all__ = ["Run", "Tracker", "Trackers", "open_trackers"]
