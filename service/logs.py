"""Logging of every process: text for people, or one JSON object per line for log collectors (UVOS_LOG_FORMAT)."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime

JOB_PREFIX = "job %s"  # messages about a job begin with it; its id is then the first argument

_job: ContextVar[dict[str, str]] = ContextVar("job")


@contextmanager
def job_context(job_id: str, trace_id: str | None) -> Iterator[None]:
    """Add the ids of a job and of its trace to all log lines of a block."""
    token = _job.set({"job_id": job_id} | ({"trace_id": trace_id} if trace_id is not None else {}))
    try:
        yield
    finally:
        _job.reset(token)


class JsonFormatter(logging.Formatter):
    """One JSON object per line."""

    def __init__(self, process_type: str) -> None:
        super().__init__()
        self._process_type = process_type

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "process": self._process_type,
            "pid": record.process,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if str(record.msg).startswith(JOB_PREFIX) and isinstance(record.args, tuple) and record.args:
            line["job_id"] = str(record.args[0])
        line |= _job.get({})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def configure_logging(process_type: str, *, as_json: bool) -> None:
    """Send all log lines of this process to standard error.

    Args:
        process_type: `up`, `api`, `worker` or `child`.
        as_json: One JSON object per line instead of text.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(
        JsonFormatter(process_type)
        if as_json
        else logging.Formatter(f"%(asctime)s {process_type}[%(process)d] %(message)s")
    )
    logging.basicConfig(level=logging.INFO, handlers=[handler])
