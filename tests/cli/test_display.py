"""What is printed while runs go on."""

import io
import os
import signal

from rich.console import Console

from fastvim.experiments.runner import StopRequest
from fastvim_cli.display import RunProgress


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
