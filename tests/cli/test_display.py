"""What is printed while runs go on."""

import io
import os
import signal
from collections import namedtuple

import pytest
from rich.console import Console

from fastvim.experiments.runner import StopRequest
from fastvim_cli.display import RunProgress

Named = namedtuple("Named", "identity, name")


class Interrupting(io.StringIO):
    """A stream during whose first write Ctrl-C is pressed."""

    def write(self, text):
        first = not self.getvalue()
        written = super().write(text)
        if first:
            os.kill(os.getpid(), signal.SIGINT)
        return written


def test_an_interrupt_while_a_line_is_printed_prints_nothing_twice():
    stream = Interrupting()
    progress = RunProgress(1, 0)
    progress._console = Console(file=stream)
    stop = StopRequest()
    with stop.listening(lambda: progress.say("Stopping.")):
        progress.say("a run done")
        assert stop()
    assert stop.exit_code == 130
    assert sorted(stream.getvalue().splitlines()) == ["Stopping.", "a run done"]


def test_a_long_command_is_not_broken():
    stream = io.StringIO()
    progress = RunProgress(1, 0)
    progress._console = Console(file=stream, width=80)
    command = "fastvim ablate mine.yaml " + "--set training.epochs=20 " * 20
    progress.say(f"Stopped; everything is saved. To go on: {command}")
    assert len(stream.getvalue().splitlines()) == 1


def test_what_an_earlier_session_trained_of_a_run_says_nothing_about_the_time_left(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    progress, seconds = RunProgress(3, 0), 0
    progress._bar.get_time = lambda: seconds
    at = {}
    # Two at a time, 1 % in 36 seconds; the one that begins later was stopped at 80 %.
    for run, first in ((Named("a", "new"), 0), (Named("b", "resumed"), 80)):
        progress({"event": "start", "run": run, "step": first, "steps": 100})
        at[run] = first
        for _ in range(5):
            seconds += 36
            for each in at:
                at[each] += 1
                progress(
                    {"event": "step", "run": each, "step": at[each], "steps": 100, "loss": 1.0}
                )
    left = 3 - 0.1 - 0.85
    # The first sample has no time to count in.
    speed = 0.14 / (9 * 36)
    assert progress._bar.tasks[0].time_remaining == pytest.approx(left / speed, abs=1)
