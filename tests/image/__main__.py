"""python -m tests.image size|start: what is in the image, or how quickly it starts."""

import statistics
import sys

from tests.image import container
from tests.support.server import free_port


def print_sizes() -> None:
    """Print the size of the image above its base, as files and packed as layers."""
    sizes = container.run_script("inside_sizes")
    print("| above the base image | MB | MB packed |\n| --- | ---: | ---: |")
    for part, (size, packed) in [
        *sizes.items(),
        ("total", [sum(column) for column in zip(*sizes.values(), strict=True)]),
    ]:
        print(f"| {part} | {size / 1e6:.1f} | {packed / 1e6:.1f} |")


def print_start() -> None:
    """Print the time from the container's first process to the first vector, files in the page cache."""
    seconds = container.run_script("inside_start", network=False, environ={"PORT": str(free_port())})
    shown = ", ".join(f"{value:.2f}" for value in sorted(seconds[1:]))
    print(f"`gunicorn` to first vector in the container: {statistics.median(seconds[1:]):.2f} s (of {shown})")


if __name__ == "__main__":
    {"size": print_sizes, "start": print_start}[sys.argv[1]]()
