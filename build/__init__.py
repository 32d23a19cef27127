"""The model build: source -> export -> quantize -> verify. Never in the runtime image."""

import os

# Read when the packages are imported: nothing is reported to their makers.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# The hub's progress bars would tear the lines of ours.
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


class BuildError(Exception):
    """The build cannot go on; the message says why and what to do."""
