"""How a refusal has to read."""

from __future__ import annotations

import re
import subprocess

ADVICE = ("weights_only", "trusted source", "github.com", "bug report", "Traceback", 'File "')


def refusal(done: subprocess.CompletedProcess[str], *codes: int) -> str:
    """The message of a run that was refused: it says what is wrong, where, and what to do.

    One line a problem, of a length that can be read, without another library's advice, a traceback
    or an escape code.
    """
    said = done.stderr
    assert done.returncode in (codes or (1, 2)), (done.returncode, said)
    assert not [word for word in ADVICE if word in said], said
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", said), repr(said)
    lines = [line for line in said.splitlines() if not re.match(r"\w+ epoch|\w+: \d+/\d+", line)]
    assert lines, "nothing was said"
    assert all(len(line) <= 1100 for line in lines), said[:2000]
    last = lines[-1]
    assert re.search(r"^[\w-]+: |[\w/]+\.\w+", last), f"no place: {last}"
    return last
