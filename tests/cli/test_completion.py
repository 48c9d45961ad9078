"""Completion in the shells themselves: words are typed at a terminal, and Tab is pressed."""

import os
import pty
import re
import select
import shutil
import sys
import time
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent
pytestmark = pytest.mark.skipif(
    not (BIN / "fastvim").exists(), reason="fastvim is not installed as a command"
)
SHELLS = {
    "bash": (["--norc", "--noprofile", "-i"], 'eval "$(fastvim completion bash)"'),
    "zsh": (["-f", "-i"], 'autoload -Uz compinit; compinit -u; eval "$(fastvim completion zsh)"'),
    "fish": (["--no-config", "-i"], "fastvim completion fish | source"),
}
# What is typed before Tab, and what Tab adds.
LINES = {
    "fastvim abl": "ate ",
    "fastvim ablate post": "-ssm-norm ",
    "fastvim ablate my": ".yaml ",
    "fastvim train my.yaml --variant on": "e ",
    "fastvim ablate pooling-operator --variants mean,ma": "x ",
    "fastvim ablate pooling-operator --profile sm": "oke ",
    # A value is to follow.
    "fastvim show my.yaml --set model.post": "_ssm_norm=",
    "fastvim show my.yaml --grid model.d_s": "tate=",
    "fastvim show my.yaml training.mom": "entum=",
}
PATIENCE = 120


class Terminal:
    """An interactive shell in `folder`."""

    def __init__(self, shell: str, options: list[str], folder: Path) -> None:
        # fish asks a terminal that can move its cursor where that is.
        environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}", "HOME": str(folder)}
        environment |= {"TERM": "dumb" if shell == "fish" else "xterm"}
        self._seen = ""
        self._process, self._terminal = pty.fork()
        if self._process == 0:
            os.chdir(folder)
            os.execvpe(shell, [shell, *options], environment)

    def type(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def wait_for(self, pattern: str) -> re.Match:
        last = time.monotonic() + PATIENCE
        while (found := re.search(pattern, self._seen)) is None:
            assert time.monotonic() < last, self._seen[-2000:]
            if select.select([self._terminal], [], [], 0.5)[0]:
                self._seen += os.read(self._terminal, 65536).decode(errors="replace")
        self._seen = self._seen[found.end() :]
        return found

    def close(self) -> None:
        os.close(self._terminal)  # Hangs up on the shell.
        os.kill(self._process, 9)
        os.waitpid(self._process, 0)


@pytest.mark.parametrize("shell", SHELLS)
def test_the_shell_completes(shell, tmp_path):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    (tmp_path / "my.yaml").write_text("base: {model.name: vim_pico}\nvariants: {one: {}, two: {}}")
    options, setup = SHELLS[shell]
    terminal = Terminal(shell, options, tmp_path)
    try:
        terminal.type(f"{setup}; echo REA''DY\n")
        terminal.wait_for(r"READY\r")
        for line, rest in LINES.items():
            terminal.type(f"{line}\tx")
            # Ctrl-A and Ctrl-E: the line becomes a quoted word, which echo prints.
            terminal.type("\x01echo '<\x05>'\n")
            found = terminal.wait_for(r"\n[^\n']*<(fastvim[^>\n]*)>\r?\n").group(1)
            assert found == f"{line}{rest}x"
    finally:
        terminal.close()
