"""The messages between a worker and its child process: one JSON object per line, one model per message."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from uvos.contract import JobProgress, JobTiming, Problem


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Run(Message):
    """To the child: begin an execution."""

    kind: Literal["run"] = "run"
    job_id: str
    execution: str
    started_at: datetime
    trace_id: str | None = None


class Cancel(Message):
    """To the child: stop an execution."""

    kind: Literal["cancel"] = "cancel"
    execution: str


class Ready(Message):
    """From the child: it waits for work. Sent after start and after every execution."""

    kind: Literal["ready"] = "ready"
    device: str
    models: dict[str, str] = Field(default_factory=dict)
    """Name -> SHA-256 of the weights of each loaded model."""
    sandbox: list[str] = Field(default_factory=list)
    """The mechanisms that confine the video decoder."""
    memory_bytes: int = 0
    """Memory of the device; main memory on a CPU."""
    memory_peak_bytes: int = 0
    """Peak use of that memory since start."""


class StartFailed(Message):
    """From the child: it cannot start, and exits."""

    kind: Literal["start_failed"] = "start_failed"
    reason: str


class Begun(Message):
    """From the child: an execution began."""

    kind: Literal["begun"] = "begun"
    execution: str


class ProgressUpdate(Message):
    """From the child: the progress of an execution."""

    kind: Literal["progress"] = "progress"
    progress: JobProgress


class Done(Message):
    """From the child: an execution succeeded; its output folder is complete."""

    kind: Literal["done"] = "done"
    execution: str
    timing: JobTiming


class Stopped(Message):
    """From the child: an execution stopped because it was cancelled or its job was deleted."""

    kind: Literal["stopped"] = "stopped"
    execution: str


class StorageFailed(Message):
    """From the child: an execution stopped because the data folder cannot be read or written; the job runs again."""

    kind: Literal["storage_failed"] = "storage_failed"
    execution: str
    reason: str


class Failed(Message):
    """From the child: an execution failed."""

    kind: Literal["failed"] = "failed"
    execution: str
    problem: Problem
    restart: bool = False
    """Whether the child must be restarted before the next execution."""


ToChild = Run | Cancel
FromChild = Ready | StartFailed | Begun | ProgressUpdate | Done | Stopped | StorageFailed | Failed
TO_CHILD: TypeAdapter[ToChild] = TypeAdapter(Annotated[ToChild, Field(discriminator="kind")])
FROM_CHILD: TypeAdapter[FromChild] = TypeAdapter(Annotated[FromChild, Field(discriminator="kind")])


def encode(message: ToChild | FromChild) -> bytes:
    """A message as one line."""
    return message.model_dump_json().encode() + b"\n"
