"""Requeue lost jobs: every open job that is neither leased nor queued.

This one rule covers a killed worker, a Redis that lost its data, and an API process that died between storage and
queue. RQ's own registries of executions, retries and failures are not used. One worker, the leader, does this for all.
"""

import logging
from datetime import UTC, datetime

from service.jobs.index import JobIndex
from service.jobs.metrics import Instruments
from service.jobs.queue import Broker
from service.settings import Settings
from service.storage.folder import Storage

log = logging.getLogger(__name__)

SWEEP_INTERVAL_S = 3600  # of all jobs, for what the index does not know: the remains of processes that died
LOST_AFTER_SIGHTINGS = 2  # in sequence: a job between queue and lease looks lost for a moment
LEADER_TERM = 3.0  # recovery intervals; then another worker may become the leader
MIN_LEADER_TERM_S = 3.0  # a worker may be in a blocking call for a second between two passes


class Recovery:
    """Finds and requeues lost jobs; removes expired ones."""

    def __init__(
        self, settings: Settings, storage: Storage, broker: Broker, *, name: str, instruments: Instruments
    ) -> None:
        self.settings = settings
        self.name = name
        """The name of the worker."""
        self.storage = storage
        self.broker = broker
        self.index = JobIndex(storage, broker.connection)
        self.instruments = instruments
        self._sightings: dict[str, int] = {}

    def run(self) -> None:
        """One pass, if this worker is or becomes the leader.

        Raises:
            redis.RedisError: Redis does not respond.
        """
        term_s = max(MIN_LEADER_TERM_S, LEADER_TERM * self.settings.recovery_interval_s)
        if not self.broker.lead(self.name, term_s):
            return
        open_jobs = self.storage.open_jobs()
        self._requeue_lost(open_jobs)
        self.broker.unpark(self.settings.max_running_per_key)
        for job_id in self.broker.popped():
            if self.storage.has_ended(job_id):
                self.broker.ack(job_id, has_ended=True)
        if self.index.is_current():
            self.index.reconcile(open_jobs)
        expired = self.index.expire(datetime.now(UTC))
        if self.broker.is_sweep_due(SWEEP_INTERVAL_S):
            expired += self.storage.sweep()
        for job_id in expired:
            log.info("job %s expired", job_id)

    def resign(self) -> None:
        """Let another worker become the leader, before this one runs a job."""
        self.broker.resign(self.name)

    def _requeue_lost(self, open_jobs: list[str]) -> None:
        lost = self.broker.lost(open_jobs)
        self._sightings = {job_id: self._sightings.get(job_id, 0) + 1 for job_id in lost}
        for job_id in reversed(lost):  # each is queued at the front, so the oldest goes last
            try:
                self._requeue(job_id)
            except OSError as error:  # of this job's files only
                log.error("job %s: cannot be requeued: %s", job_id, error)

    def _requeue(self, job_id: str) -> None:
        if self.storage.has_ended(job_id):
            self.storage.purge(job_id)
        elif self._sightings[job_id] >= LOST_AFTER_SIGHTINGS and self.broker.drop_lost(job_id):
            log.warning("job %s was not in the queue; queued again", job_id)
            self.broker.enqueue(job_id, at_front=True)
            self.instruments.requeues.labels("lost").inc()
