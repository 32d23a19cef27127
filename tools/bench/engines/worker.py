"""Worker: the process of one engine. It runs in the engine's own packages, so it imports nothing of ours but adapters.

    python worker.py ADAPTER FOLDER STREAMS THREADS

STREAMS runs at once, of THREADS threads each. Reads commands from stdin, one JSON object a line, and answers with one
each: {"rows": …, "batch": n, "seconds": s} -> texts per second; {"rows": …, "batch": n} -> the texts' vectors.
"""

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import adapters  # type: ignore[import-not-found]  # beside this file, where Python finds it


def main() -> None:
    name, folder, streams, threads = sys.argv[1:]
    runs = getattr(adapters, name)(Path(folder), int(streams), int(threads))
    runs[0]([[0, 1, 2]])
    for line in sys.stdin:
        command = json.loads(line)
        # sorted by length, so that a batch needs little padding
        rows = sorted(command["rows"], key=len)
        batches = [rows[start : start + command["batch"]] for start in range(0, len(rows), command["batch"])]
        answer: Any
        if "seconds" in command:
            answer = texts_per_second(runs, batches, command["seconds"])
        else:
            vectors = {tuple(row): vector.tolist() for rows in batches for row, vector in zip(rows, runs[0](rows))}
            answer = [vectors[tuple(row)] for row in command["rows"]]
        print(json.dumps({"answer": answer, "memory_mb": memory_mb()}), flush=True)


def texts_per_second(runs: list[Any], batches: list[Any], seconds: float) -> float:
    """Run all streams until the time is over, each beginning at another batch."""
    runs[-1](batches[0])
    done = [0] * len(runs)
    until = time.perf_counter() + seconds

    def work(stream: int) -> None:
        index = stream * len(batches) // len(runs)
        while time.perf_counter() < until:
            batch = batches[index % len(batches)]
            runs[stream](batch)
            done[stream] += len(batch)
            index += 1

    start = time.perf_counter()
    streams = [threading.Thread(target=work, args=(stream,)) for stream in range(len(runs))]
    for stream in streams:
        stream.start()
    for stream in streams:
        stream.join()
    return sum(done) / (time.perf_counter() - start)


def memory_mb() -> float:
    """Return the highest resident memory so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6


if __name__ == "__main__":
    main()
