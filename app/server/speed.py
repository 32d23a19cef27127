"""Speed: how long rows take to compute here, from what rows have taken."""

# Weight of what was measured before, for each second of computing.
DECAY_PER_SECOND = 0.9


class Speed:
    """The line seconds = per_row + per_token * tokens through all rows that were measured, the last ones above all.

    Ordinary least squares on decaying sums. CPU time is measured, so that what runs beside does not count.
    """

    def __init__(self) -> None:
        self._rows = self._tokens = self._seconds = self._tokens_tokens = self._tokens_seconds = 0.0

    def add(self, tokens: int, seconds: float) -> None:
        """Take in a row of so many tokens, which took so many seconds of CPU time."""
        decay = DECAY_PER_SECOND**seconds
        self._rows = self._rows * decay + 1
        self._tokens = self._tokens * decay + tokens
        self._seconds = self._seconds * decay + seconds
        self._tokens_tokens = self._tokens_tokens * decay + tokens * tokens
        self._tokens_seconds = self._tokens_seconds * decay + tokens * seconds

    def seconds(self, rows: int, tokens: int) -> float:
        """Return the CPU time of so many rows with so many tokens in all; 0 before anything was measured."""
        if not self._rows:
            return 0.0
        variance = self._rows * self._tokens_tokens - self._tokens * self._tokens
        covariance = self._rows * self._tokens_seconds - self._tokens * self._seconds
        # Equal lengths have no slope; a row costs no less when it is longer.
        per_token = max(0.0, covariance / variance) if variance > 1e-9 * self._tokens_tokens else 0.0
        per_token = min(per_token, self._seconds / self._tokens)  # the line does not start below 0
        per_row = (self._seconds - per_token * self._tokens) / self._rows
        return rows * per_row + tokens * per_token
