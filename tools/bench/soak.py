"""make soak: the server at full load for twenty minutes; its memory must not grow after the first.

32 clients, one text a request, of random lengths from 1 to MAX_LENGTH tokens. SECONDS=… for another time.
"""

import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

from app.settings import Settings
from tests.support.server import Server
from tools.bench import engine, load

SECONDS = 1200
WARM_UP_SHARE = 1 / 20
SAMPLE_SHARE = 1 / 400
CLIENTS = 32
TEXTS = 20_000  # more than the cache holds
MOST_GROWTH = 0.02


def main() -> None:
    settings = load.settings()
    seconds = float(os.environ.get("SECONDS", SECONDS))
    server = load.serve(settings).wait_until_ready()
    try:
        growth = soak(server, settings, seconds)
    finally:
        server.stop()
    if growth > MOST_GROWTH:
        sys.exit(f"The resident set grew by {growth:.1%}, more than {MOST_GROWTH:.0%}.")


def soak(server: Server, settings: Settings, seconds: float) -> float:
    """Return the growth of the workers' resident set from the warm-up to the end, as a share."""
    samples: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        bodies = load.write_bodies(folder, random_texts(settings), 1)
        with load.wrk_behind(server, bodies, CLIENTS, seconds):
            until = time.monotonic() + seconds
            time.sleep(seconds * WARM_UP_SHARE)
            while time.monotonic() < until:
                samples.append(resident_megabytes(server))
                time.sleep(seconds * SAMPLE_SHARE)
    part = max(1, len(samples) // 20)
    first, last = statistics.median(samples[:part]), statistics.median(samples[-part:])
    growth = last / first - 1
    print(
        f"{seconds:.0f} s, {CLIENTS} clients: {first:.1f} MB after {seconds * WARM_UP_SHARE:.0f} s, {last:.1f} MB at "
        f"the end ({growth:+.2%}), at most {max(samples):.1f} MB"
    )
    return growth


def random_texts(settings: Settings) -> list[str]:
    """Return texts of 1 to MAX_LENGTH tokens from build/texts/, each length equally often."""
    encoder = engine.load(settings, settings.model_path.name)
    mixed = " ".join(load.mixed_texts())
    tokens_per_character = encoder.encode([mixed]).tokens[0] / len(mixed)
    choice = random.Random(0)
    texts = []
    for _ in range(TEXTS):
        length = max(1, round(choice.randint(1, settings.max_length) / tokens_per_character))
        start = choice.randrange(len(mixed) - length)
        texts.append(mixed[start : start + length])
    return texts


def resident_megabytes(server: Server) -> float:
    """Return the resident set of the workers, bytes."""
    pages = (int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in server.workers())
    return sum(pages) * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    main()
