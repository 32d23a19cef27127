"""python -m tools.older_cpu COMMAND…: run a command whose onnxruntime finds a CPU with AVX2 and nothing newer."""

import os
import sys

from tools.older_cpu import Unavailable, environment

if __name__ == "__main__":
    command = sys.argv[1:]
    if not command:
        sys.exit("usage: python -m tools.older_cpu COMMAND...")
    try:
        environ = environment()
    except Unavailable as error:
        sys.exit(str(error))
    try:
        os.execvpe(command[0], command, environ)
    except OSError as error:
        sys.exit(f"{command[0]}: {error.strerror}")
