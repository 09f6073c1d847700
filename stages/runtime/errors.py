"""What goes wrong for a reason that the user can mend."""


class UserError(Exception):
    """One line for the user: what is wrong, where, what to do. Shown without a traceback."""


class Interrupted(Exception):
    """A signal asked the stage to stop, and it stopped at a place where nothing is lost."""

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.signal_number = signal_number


def reason(error: BaseException) -> str:
    """What an exception says, in one line, for a message that names the file itself."""
    said = getattr(error, "strerror", None) or str(error)
    return " ".join(said.split())[:300] or type(error).__name__
