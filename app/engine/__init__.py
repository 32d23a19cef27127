"""The engine: texts -> vectors. It imports no Flask, Gunicorn or gevent, and knows nothing of HTTP."""

from app.errors import BootError as BootError  # noqa: F401 – imported from here by build/
