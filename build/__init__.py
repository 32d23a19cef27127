"""The model build: source -> export -> quantize -> verify. It is never in the runtime image."""

import os

# Read by the packages at import: no usage data is sent to their makers.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# The hub client's progress bars would break the build's own lines.
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


class BuildError(Exception):
    """The build cannot continue; the message says why and what to do."""
