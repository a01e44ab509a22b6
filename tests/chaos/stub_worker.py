"""A worker with a stub child. A file can order it to die, to stop or to fill the disk at a named step of a job."""

import logging
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

from rq import Queue
from rq.job import Job

from service.settings import Settings
from service.storage.folder import Storage
from uvos.contract import JobEnd
from worker.jobs.child import Child
from worker.jobs.execution import Execution, Host
from worker.jobs.messages import ProgressUpdate
from worker.jobs.worker import SegmentWorker

CHILD = "UVOS_TEST_CHILD"  # module of the child; "worker.jobs.child_process" is the real one
FILL = "FILL"
BEGIN_TIMEOUT_S = 10.0  # the stub begins at once

STEPS = ("popped", "leased", "claimed", "running", "publishing", "decided", "released")


class ObedientStorage(Storage):
    """Storage that obeys orders after the end of a job was claimed and after work was removed."""

    def remove_work(self, job_id: str, execution: str) -> None:
        super().remove_work(job_id, execution)
        obey(self, "removed")

    def finalize(self, job_id: str, claim: int) -> None:
        obey(self, "decided")
        super().finalize(job_id, claim)


class ObedientExecution(Execution):
    def __init__(self, host: Host, job_id: str) -> None:
        super().__init__(host, job_id, begin_timeout_s=BEGIN_TIMEOUT_S)

    def take_lease(self) -> bool:
        is_taken = super().take_lease()
        obey(self.host.storage, "leased")
        return is_taken

    def check_attempts(self) -> JobEnd | None:
        obey(self.host.storage, "claimed")
        return super().check_attempts()

    def publish_progress(self, update: ProgressUpdate) -> None:
        obey(self.host.storage, "running")
        super().publish_progress(update)

    def publish(self, end: JobEnd) -> None:
        obey(self.host.storage, "publishing")
        super().publish(end)


class ObedientWorker(SegmentWorker):
    execution_type = ObedientExecution

    def execute_job(self, job: Job, queue: Queue) -> None:
        obey(self.storage, "popped")
        super().execute_job(job, queue)
        obey(self.storage, "released")


def obey(storage: Storage, step: str) -> None:
    """Carry out the order for this step, if there is one: KILL, STOP or FILL, once."""
    order = storage.root / f"order-{step}"
    try:
        name = order.read_text()
        order.unlink()
    except FileNotFoundError:
        return
    if name == FILL:
        fill_disk(storage.root)
        return
    os.kill(os.getpid(), signal.Signals[f"SIG{name}"])


def fill_disk(root: Path) -> None:
    """Leave not a byte free on the disk of this folder; removing the file `ballast` frees it again."""
    with (root / "ballast").open("ab", buffering=0) as ballast:
        for size in (1 << 20, 1 << 12, 1):
            with suppress(OSError):
                while ballast.write(bytes(size)) == size:
                    pass


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s worker[%(process)d] %(message)s", stream=sys.stderr)
    settings = Settings()
    storage = ObedientStorage(settings.data_dir, result_ttl_s=settings.result_ttl_s)
    ObedientWorker(settings, storage, Child(settings, os.environ.get(CHILD, "tests.chaos.stub_child"))).serve()


if __name__ == "__main__":
    main()
