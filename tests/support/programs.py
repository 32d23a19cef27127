"""Programs that some tests need."""

import os
import shutil
from typing import NoReturn

import pytest


def require(program: str, package: str) -> str:
    """Return the path of a program. Without it the test is skipped, but fails in CI."""
    path = shutil.which(program)
    return path or give_up(f"{program} is missing: apt-get install {package}")


def give_up(reason: str) -> NoReturn:
    """Skip the test, since this machine lacks something; fail it in CI, whose machine must have everything."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
