"""Long work shows itself: a bar with rate, time left and failures on a terminal, lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from stages.runtime.errors import clean
from stages.runtime.ranks import place

LINE_EVERY = 15.0  # seconds between two lines of a log


def say(text: str) -> None:
    """One line to the user, on standard error; of several ranks the first speaks for all."""
    if place().rank == 0:
        warn(text)


def warn(text: str) -> None:
    """One line to the user, from whatever rank."""
    print(clean(text), file=sys.stderr, flush=True)


class Meter:
    """Counts units of work done and failed; `advance` shows them."""

    def __init__(self, title: str, unit: str, total: int, done: int) -> None:
        self.title, self.unit, self.total = title, unit, total
        self.done, self.failed = done, 0
        self._began, self._before = time.monotonic(), done

    def advance(self, count: int = 1, failed: int = 0) -> None:
        """Count units as done, some of them as failed."""
        self.done += count
        self.failed += failed

    @property
    def rate(self) -> float:
        """Units a second since this run began."""
        return (self.done - self._before) / max(time.monotonic() - self._began, 1e-9)

    def line(self) -> str:
        """The state of the work in words, for a log."""
        left = (self.total - self.done) / self.rate if self.rate > 0 else 0.0
        failures = f", {self.failed} failed" if self.failed else ""
        return (
            f"{self.title}: {self.done}/{self.total} {self.unit}, "
            f"{self.rate:.1f}/s, {left:.0f} s left{failures}"
        )


class _Bar(Meter):
    def __init__(self, title: str, unit: str, total: int, done: int, bar: Progress) -> None:
        super().__init__(title, unit, total, done)
        self._bar = bar
        self._task = bar.add_task(title, total=total, completed=done, unit=unit, rate=0.0, failed=0)

    def advance(self, count: int = 1, failed: int = 0) -> None:
        super().advance(count, failed)
        self._bar.update(self._task, completed=self.done, rate=self.rate, failed=self.failed)


class _Lines(Meter):
    def __init__(self, title: str, unit: str, total: int, done: int) -> None:
        super().__init__(title, unit, total, done)
        self._shown = time.monotonic()

    def advance(self, count: int = 1, failed: int = 0) -> None:
        super().advance(count, failed)
        now = time.monotonic()
        if self.done >= self.total or now - self._shown >= LINE_EVERY:
            self._shown = now
            say(self.line())


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        fields = task.fields
        failures = f"  {fields['failed']} failed" if fields["failed"] else ""
        return Text(f"{fields['rate']:.1f} {fields['unit']}/s{failures}")


@contextmanager
def meter(title: str, unit: str, total: int, done: int = 0) -> Iterator[Meter]:
    """Show work of `total` units, `done` of them already, while the block runs.

    Of several ranks only the first shows its share.
    """
    if place().rank > 0:
        yield Meter(title, unit, total, done)
        return
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(title, unit, total, done)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        yield _Bar(title, unit, total, done, bar)
