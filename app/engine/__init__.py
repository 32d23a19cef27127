"""The engine: texts -> vectors. It knows no HTTP, no Flask, no Gunicorn and no gevent."""

from app.errors import BootError as BootError  # noqa: F401 – the build's name for it
