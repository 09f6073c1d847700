"""Long work shows itself: lines in a log, a bar on a terminal."""

from __future__ import annotations

import os
import pty
import sys

from stages.runtime.progress import meter

WORK = """
from stages.runtime.progress import meter
with meter("demo", "images", 4, done=1) as progress:
    for _ in range(3):
        progress.advance(1, failed=1)
"""


def test_a_log_gets_a_line_with_rate_time_left_and_failures(capfd):
    with meter("demo", "images", 10, done=4) as progress:
        for number in range(6):
            progress.advance(1, failed=number % 2)
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("demo: 10/10 images, ")
    assert lines[0].endswith("/s, 0 s left, 3 failed")


def test_a_terminal_gets_a_bar():
    child, terminal = pty.fork()
    if child == 0:
        environment = os.environ | {"TERM": "xterm", "COLUMNS": "120"}
        os.execve(sys.executable, [sys.executable, "-c", WORK], environment)
    shown = b""
    while True:
        try:
            part = os.read(terminal, 4096)
        except OSError:  # the child has closed its side
            break
        if not part:
            break
        shown += part
    assert os.waitpid(child, 0)[1] == 0
    text = shown.decode()
    assert "━" in text
    assert "4/4" in text
    assert "images/s" in text
    assert "3 failed" in text
