"""Loss-spike detection, the recorder in training, and readers of logs."""

from fastvim.stability.detector import SpikeDetector, detect
from fastvim.stability.episodes import Episode, Event
from fastvim.stability.settings import Settings

__all__ = ["Episode", "Event", "Settings", "SpikeDetector", "detect"]
