"""What the tests of several levels share: servers, requests, models, stand-ins for other services."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
