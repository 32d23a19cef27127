"""Shared helpers of the tests: servers, requests, models, stand-ins for other services."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
