"""Logs of one JSON object a line, on standard error."""

from __future__ import annotations

import json
import logging
import os


class JsonLines(logging.Formatter):
    """A record as a line: time, level, worker, message, and the fields of a request."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "worker": os.getpid(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line)


def set_up_logs(level: str = "INFO") -> None:
    """Send the service's and the server's records to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    for name in ("hllm.serve", "uvicorn", "py.warnings"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level.upper())
    logging.captureWarnings(True)
