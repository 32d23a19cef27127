"""Open files: the number of connections that their limit (ulimit -n) allows."""

import resource
from pathlib import Path

from app.errors import BootError

# Files that a worker opens besides connections, and the fewest connections that it needs.
SPARE_FILES, MIN_CONNECTIONS = 16, 8


def connections_allowed() -> int:
    """Return the number of connections that the limit of open files leaves room for.

    Raises:
        BootError: fewer than MIN_CONNECTIONS.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = soft - len([*Path("/proc/self/fd").iterdir()]) - SPARE_FILES
    if allowed < MIN_CONNECTIONS:
        raise BootError(
            f"The limit of open files (ulimit -n) leaves room for {max(0, allowed)} connections; "
            f"raise it by {MIN_CONNECTIONS - allowed} or more."
        )
    return allowed
