"""Where a daemon publishes and where it takes requests, unless it and its clients are told otherwise."""

__all__ = ["CONTROL", "ENDPOINT"]

ENDPOINT = "tcp://127.0.0.1:5556"
CONTROL = "tcp://127.0.0.1:5557"
