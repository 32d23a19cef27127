"""Helpers that several levels of tests share: servers, requests, failures, models, stand-ins for other services."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
