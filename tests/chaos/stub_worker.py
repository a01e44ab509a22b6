"""A worker with a stub for a child, which a file can order to die, sleep or fill the disk at a named step of a job."""

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
from worker.jobs import queue
from worker.jobs.child import Child
from worker.jobs.queue import SegmentWorker

CHILD = "UVOS_TEST_CHILD"  # another module for the child: "worker.jobs.child" is the real one
FILL = "FILL"

STEPS = ("popped", "held", "claimed", "running", "publishing", "decided", "released")


class OrderlyStorage(Storage):
    """Storage that obeys orders: once it is decided how a job ended, and once work was dropped."""

    def drop_work(self, job_id: str, execution: str) -> None:
        super().drop_work(job_id, execution)
        obey(self, "dropped")

    def _settle(self, job_id: str, number: int) -> None:
        obey(self, "decided")
        super()._settle(job_id, number)


class OrderlyWorker(SegmentWorker):
    def execute_job(self, job: Job, queue: Queue) -> None:
        obey(self.storage, "popped")
        super().execute_job(job, queue)
        obey(self.storage, "released")

    def _within_attempts(self, job_id: str) -> JobEnd | None:
        obey(self.storage, "claimed")
        return super()._within_attempts(job_id)

    def _tell(self, *arguments: object) -> None:
        obey(self.storage, "running")
        super()._tell(*arguments)  # type: ignore[arg-type]

    def _publish(self, job_id: str, end: JobEnd, claim: int) -> None:
        obey(self.storage, "publishing")
        super()._publish(job_id, end, claim)


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
    """Leave not a byte on the disk of this folder; removing the ballast makes room again."""
    with (root / "ballast").open("ab", buffering=0) as ballast:
        for size in (1 << 20, 1 << 12, 1):
            with suppress(OSError):
                while ballast.write(bytes(size)) == size:
                    pass


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s worker[%(process)d] %(message)s", stream=sys.stderr)
    settings = Settings()
    queue.BEGIN_WITHIN_S = 10.0  # the stub begins at once
    storage = OrderlyStorage(settings.data_dir, result_ttl_s=settings.result_ttl_s)
    worker = OrderlyWorker(settings, storage, Child(settings, os.environ.get(CHILD, "tests.chaos.stub_child")))
    take_lease = worker.broker.take_lease

    def take_lease_then_obey(*arguments: object, **named: object) -> bool:
        taken = take_lease(*arguments, **named)  # type: ignore[arg-type]
        obey(storage, "held")
        return taken

    worker.broker.take_lease = take_lease_then_obey  # type: ignore[method-assign]
    worker.serve()


if __name__ == "__main__":
    main()
