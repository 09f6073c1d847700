"""How a refusal has to read: every message of the suite, of a run or of a function called there."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator

import pytest

from stages.runtime.errors import UserError, clean

ADVICE = ("weights_only", "trusted source", "github.com", "bug report", "Traceback", 'File "')


def check(said: str) -> str:
    """The last line of what is said: without a library's advice, escape codes, endless lines."""
    assert not [word for word in ADVICE if word in said], said
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", said), repr(said)
    lines = said.splitlines()
    assert lines, "nothing was said"
    assert all(len(line) <= 1100 for line in lines), said[:2000]
    return lines[-1]


def refusal(done: subprocess.CompletedProcess[str], *codes: int) -> str:
    """The message of a run that was refused: it says what is wrong, where, and what to do."""
    said = done.stderr
    assert done.returncode in (codes or (1, 2)), (done.returncode, said)
    lines = [line for line in said.splitlines() if not re.match(r"\w+ epoch|\w+: \d+/\d+", line)]
    last = check("\n".join(lines))
    assert re.search(r"^[\w-]+: |[\w/]+\.\w+", last), f"no place: {last}"
    return last


@pytest.fixture(autouse=True)
def messages(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What functions called in the test say to the user is read as `refusal` reads a run's."""
    said: list[str] = []
    plain = UserError.__init__

    def recorded(self: UserError, *arguments: object) -> None:
        said.append(str(arguments[0]))
        plain(self, *arguments)

    monkeypatch.setattr(UserError, "__init__", recorded)
    yield
    for message in said:
        check(clean(message))
