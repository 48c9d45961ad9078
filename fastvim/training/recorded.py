"""What the recorder wrote in a run, read without torch: reports load in half the time."""

import json
from pathlib import Path

FOLDER = "episodes"


def recorded_summary(directory: Path, start_step: int) -> str | None:
    """What the recorder says of the episode of the run in `directory` that began there, or None
    where nothing was recorded or nothing left its past."""
    try:
        text = (directory / FOLDER / f"{start_step}.json").read_text(encoding="utf-8")
        return json.loads(text)["summary"]
    except (OSError, KeyError, TypeError, ValueError):
        return None
