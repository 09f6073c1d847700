"""What goes wrong for a reason that the user can mend, and how it is said."""

import re
from pathlib import Path
from traceback import walk_tb

PROJECT = Path(__file__).parents[1]
UNPRINTABLE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
LONGEST = 1000  # characters of a line


class UserError(Exception):
    """One line for the user: what is wrong, where, what to do. Shown without a traceback."""


class Interrupted(Exception):
    """A signal asked the stage to stop, and it stopped at a place where nothing is lost."""

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.signal_number = signal_number


def clean(text: str) -> str:
    """Lines as a terminal may show them, whatever names of files and classes are quoted in them.

    Of a control character, also one that turns the direction of writing, its escape is shown; a
    line that is too long loses its middle.
    """
    lines = []
    for line in text.split("\n"):
        if len(line) > LONGEST:
            line = f"{line[: LONGEST // 2]} … {line[-LONGEST // 2 :]}"
        lines.append(UNPRINTABLE.sub(lambda odd: f"\\x{ord(odd[0]):02x}", line))
    return "\n".join(lines)


def ours(error: BaseException) -> bool:
    """Whether this project's own code raised it, rather than a library: then it is to be seen."""
    frame = [frame for frame, _ in walk_tb(error.__traceback__)][-1]
    return Path(frame.f_code.co_filename).is_relative_to(PROJECT)


def reason(error: BaseException) -> str:
    """What an exception says, in one line, for a message that names the file itself."""
    said = getattr(error, "strerror", None) or str(error)
    return " ".join(said.split())[:300] or type(error).__name__
