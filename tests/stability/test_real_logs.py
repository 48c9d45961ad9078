"""The detector against published losses, kept beside the checkout and labelled by eye."""

from pathlib import Path

import numpy as np
import pytest

from fastvim.stability import detect

LOGS = Path(__file__).resolve().parents[2] / "../shared/loss-logs"

# Labelled on a plot before the detector was written: the five values that stand clear of all
# others in vim-base. fastvim-huge is noise, wide at first, and has none.
SPIKES = {
    "vim-base": [51779, 82219, 132439, 138224, 169194],
    "fastvim-huge": [],
}


@pytest.mark.parametrize("name", SPIKES)
def test_agrees_with_the_eye(name):
    path = LOGS / f"{name}.csv"
    if not path.exists():
        pytest.skip(f"the published loss log {path.name} is not beside this checkout")
    steps, values = np.loadtxt(path, delimiter=",", skiprows=1).T
    episodes = detect(steps, values)
    assert [episode.peak_step for episode in episodes] == SPIKES[name]
    assert all(episode.kind == "spike" and episode.recovered for episode in episodes)
    # A rescaled and shifted loss is the same curve.
    scaled = detect(steps, 1e-6 * values - 3e-5)
    assert [episode.peak_step for episode in scaled] == SPIKES[name]
