"""Watch logs that are being written, and report episodes as they start and finish."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fastvim.errors import UserError
from fastvim.stability.detector import SpikeDetector
from fastvim.stability.episodes import NONFINITE, Event
from fastvim.stability.readers import Log, find_logs, tags_of
from fastvim.stability.settings import Settings


@dataclass(frozen=True)
class Sighting:
    """An event of a followed curve. `live` is False for what was in the log when it was opened,
    or when it was found to be shorter than before."""

    path: str
    tag: str
    event: Event
    live: bool


class Follower:
    """Follows every loss (or the given tags) of the logs at some paths.

    `poll()` takes what was added since the last time, also new files in a folder.
    """

    def __init__(
        self, paths: list[Path], tags: tuple[str, ...] = (), settings: Settings | None = None
    ):
        self.paths = paths
        self.tags = tags
        self.settings = settings
        self.logs: dict[Path, Log] = {}
        self.detectors: dict[tuple[str, str], SpikeDetector] = {}
        self.taken: dict[tuple[str, str], int] = {}

    def poll(self) -> list[Sighting]:
        """The events in what was added. Raises UserError as reading does."""
        sightings = []
        for log in self._discover():
            log.poll(patient=True)
            for tag in tags_of(log, self.tags) if log.tags else []:
                sightings += self._take(log, tag)
        return sightings

    def _take(self, log: Log, tag: str) -> list[Sighting]:
        key = (str(log.path), tag)
        taken, length = self.taken.get(key, 0), log.length(tag)
        # What was written anew, as by a run that is resumed, is read like what is new.
        live = key in self.detectors and length >= taken
        if not live:
            self.detectors[key], taken = SpikeDetector(self.settings), 0
        self.taken[key] = length
        if length == taken:
            return []
        curve = log.curve(tag)
        events = self.detectors[key].extend(curve.steps[taken:], curve.values[taken:])
        return [Sighting(*key, event, live) for event in events]

    def _discover(self) -> list[Log]:
        """The logs there are by now, with their new files; a folder may still be empty."""
        for path in self.paths:
            try:
                found = find_logs([path])
            except UserError:
                if not path.is_dir():
                    raise
                continue
            for log in found:
                known = self.logs.setdefault(log.path, log)
                files = {reader.path for reader in known.readers}
                known.readers += [reader for reader in log.readers if reader.path not in files]
        return list(self.logs.values())


def follow(
    follower: Follower, pause: float = 1.0, sleep: Callable[[float], None] = time.sleep
) -> Iterator[Sighting]:
    """Poll for ever, every `pause` seconds."""
    while True:
        yield from follower.poll()
        sleep(pause)


def sentence(sighting: Sighting) -> str:
    """One line on a sighting, with the time of day where it is live."""
    episode = sighting.event.episode
    when = time.strftime("%H:%M:%S ") if sighting.live else "before   "
    where = f"{sighting.path} {sighting.tag}: step {episode.start_step:g}"
    height = f"{episode.height:.1f} deviations"
    if sighting.event.what == "started":
        what = "NaN or infinity" if episode.kind == NONFINITE else f"an episode, {height} so far"
        return f"{when}{where} starts {what}"
    if sighting.event.what == "replaced":
        return f"{when}{where} {episode.kind} replaced, the run went back before it"
    end = "recovered" if episode.recovered else "not recovered"
    return f"{when}{where} {episode.kind}, {height}, until step {episode.end_step:g}, {end}"
