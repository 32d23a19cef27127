"""Speed: estimates how long texts take to compute on this machine, from those computed so far."""

# Factor on the weight of older measurements for each second of computing.
DECAY_PER_SECOND = 0.9


class Speed:
    """Fits seconds = per_row + per_token * tokens to the measured rows; recent rows weigh more.

    Method: ordinary least squares on decaying sums. CPU time is measured, so other work on the machine does not count.
    """

    def __init__(self) -> None:
        self._rows = self._tokens = self._seconds = self._tokens_tokens = self._tokens_seconds = 0.0

    def add(self, tokens: int, seconds: float) -> None:
        """Add a measured row: its token count and its CPU time in seconds."""
        decay = DECAY_PER_SECOND**seconds
        self._rows = self._rows * decay + 1
        self._tokens = self._tokens * decay + tokens
        self._seconds = self._seconds * decay + seconds
        self._tokens_tokens = self._tokens_tokens * decay + tokens * tokens
        self._tokens_seconds = self._tokens_seconds * decay + tokens * seconds

    def seconds(self, rows: int, tokens: int) -> float:
        """Return the estimated CPU time of rows with `tokens` tokens in total; 0 before the first measurement."""
        if not self._rows:
            return 0.0
        variance = self._rows * self._tokens_tokens - self._tokens * self._tokens
        covariance = self._rows * self._tokens_seconds - self._tokens * self._seconds
        # A slope needs different lengths, and a longer row never costs less.
        per_token = max(0.0, covariance / variance) if variance > 1e-9 * self._tokens_tokens else 0.0
        per_token = min(per_token, self._seconds / self._tokens)  # the line does not start below 0
        per_row = (self._seconds - per_token * self._tokens) / self._rows
        return rows * per_row + tokens * per_token
