"""The server: all that knows Gunicorn and gevent."""
