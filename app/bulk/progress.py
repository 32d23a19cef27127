"""Progress: a bar on a terminal, lines of the log elsewhere, both on stderr."""

import shutil
import sys
import time
from collections import deque
from typing import Any

from app import logs

# Interval between updates, seconds: on a terminal, and in a log.
TERMINAL_SECONDS = 0.2
LOG_SECONDS = 10.0
# Time over which the rate is measured, seconds.
RATE_SECONDS = 30.0
BAR_CHARACTERS = 30
SPACE = "  "


class Progress:
    """Shows how far a run is. is_terminal: whether somebody reads it there."""

    def __init__(self) -> None:
        self.is_terminal = sys.stderr is not None and sys.stderr.isatty()
        self._total = 0
        # (time, rows, consumed), the oldest first.
        self._past: deque[tuple[float, int, int]] = deque()
        self._shown = 0.0

    def start(self, total: int, rows: int, consumed: int) -> None:
        """Begin to measure. total: size of all inputs, in the measure of Unit.size; 0 if it is unknown, as for stdin.

        rows, consumed: done by earlier runs.
        """
        self._total = total
        self._shown = time.monotonic()
        self._past.append((self._shown, rows, consumed))

    def update(self, rows: int, consumed: int) -> None:
        """Show the numbers, if the last ones are old enough. rows, consumed: done so far."""
        now = time.monotonic()
        self._past.append((now, rows, consumed))
        while now - self._past[0][0] > RATE_SECONDS and len(self._past) > 2:
            self._past.popleft()
        if now - self._shown < (TERMINAL_SECONDS if self.is_terminal else LOG_SECONDS):
            return
        self._shown = now
        then, rows_then, consumed_then = self._past[0]
        seconds = now - then
        rate = (rows - rows_then) / seconds if seconds else 0.0
        fields: dict[str, Any] = {"rows": rows, "rowsPerSecond": round(rate, 1)}
        words = [f"{rows:,} rows", f"{rate:,.0f} rows/s"]
        share = min(1.0, consumed / self._total) if self._total else None
        if share is not None:
            fields["share"] = round(share, 4)
            words.insert(0, f"{share:.0%}")
            if consumed > consumed_then:
                left = (self._total - consumed) * seconds / (consumed - consumed_then)
                fields["secondsLeft"] = round(left)
                words.append(f"{_clock(left)} left")
        if not self.is_terminal:
            logs.write("INFO", ", ".join(words), fields)
            return
        full = round((share or 0) * BAR_CHARACTERS)
        bar = f"[{'#' * full}{'.' * (BAR_CHARACTERS - full)}] " if share is not None else ""
        width = shutil.get_terminal_size().columns - 1  # a longer line would not be overwritten
        print(f"\r\x1b[K{f'{bar}{SPACE.join(words)}'[:width]}", end="", file=sys.stderr, flush=True)

    def say(self, severity: str, message: str, **fields: Any) -> None:
        """Show a sentence, on a line of its own."""
        if self.is_terminal:
            print(f"\r\x1b[K{'Error: ' if severity == 'ERROR' else ''}{message}", file=sys.stderr, flush=True)
        else:
            logs.write(severity, message, fields)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
