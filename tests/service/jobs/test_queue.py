"""The state in Redis: a job is queued once and leased once; content written by others is ignored."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from service.jobs.queue import Broker, Live, connect
from uvos.contract import JobParams, JobProgress, JobRecord, Motion, Stage, WorkerInfo


@pytest.fixture
def broker(redis_url: str) -> Iterator[Broker]:
    connection = connect(redis_url)
    yield Broker(connection, job_timeout_s=60)
    connection.close()


def is_leased(broker: Broker, job_id: str) -> bool:
    return bool(broker.connection.exists(f"uvos:lease:{job_id}"))


def wait_until_expired(broker: Broker, job_id: str) -> None:
    while is_leased(broker, job_id):
        time.sleep(0.001)


def record(job_id: str, owner: str | None = None) -> JobRecord:
    params = JobParams(tau=[1.0], model="tiny", motion=Motion.off)
    return JobRecord(
        id=job_id,
        created_at=datetime.now(UTC),
        owner=owner,
        video_name="a",
        video_bytes=1,
        video_sha256="",
        params=params,
    )


def position(broker: Broker, job_id: str, owner: str | None = None) -> int | None:
    [live] = broker.live([record(job_id, owner)])
    return live.position


def progress(execution: str = "e") -> JobProgress:
    return JobProgress(execution=execution, started_at=datetime(2026, 1, 1, tzinfo=UTC), stage=Stage.features)


def test_enqueue_queues_a_job_once(broker: Broker) -> None:
    for _ in range(3):
        broker.enqueue("a")
    assert broker.length() == 1
    assert position(broker, "a") == 0
    broker.enqueue("b", at_front=True)
    assert (position(broker, "b"), position(broker, "a")) == (0, 1)


def test_dequeue_removes_every_trace_of_a_job(broker: Broker) -> None:
    broker.enqueue("a")
    broker.dequeue("a", owner=None)
    assert position(broker, "a") is None
    assert not broker.connection.exists("rq:job:a")


def test_a_queue_message_carries_the_job_id_only(broker: Broker) -> None:
    broker.enqueue("a")
    data: bytes = broker.queue.fetch_job("a").data
    assert data == b'["worker.jobs.tasks.segment_video", null, [], {"job_id": "a"}]'


def test_a_lease_is_exclusive_until_it_is_released_or_expires(broker: Broker) -> None:
    assert broker.take_lease("a", "first", 60, owner=None)
    assert not broker.take_lease("a", "second", 60, owner=None)
    assert broker.renew_lease("a", "first", 60, owner=None)
    assert not broker.renew_lease("a", "second", 60, owner=None)
    broker.release_lease("a", "second", owner=None)
    assert is_leased(broker, "a")
    broker.release_lease("a", "first", owner=None)
    assert broker.take_lease("a", "second", 0.001, owner=None)
    wait_until_expired(broker, "a")
    assert broker.take_lease("a", "third", 60, owner=None)


def test_leases_are_limited_per_owner(broker: Broker) -> None:
    assert broker.take_lease("a", "1", 60, owner="ada", limit=2)
    assert broker.take_lease("b", "2", 0.001, owner="ada", limit=2)
    assert broker.take_lease("c", "3", 60, owner="bob", limit=2)
    wait_until_expired(broker, "b")
    assert broker.take_lease("d", "4", 60, owner="ada", limit=2)  # the lease of b has expired
    assert not broker.take_lease("e", "5", 60, owner="ada", limit=2)
    broker.release_lease("a", "1", owner="ada")
    assert broker.take_lease("e", "5", 60, owner="ada", limit=2)


def pop(broker: Broker) -> str | None:
    """Pop a job as RQ does."""
    job_id: bytes | None = broker.connection.lmove(broker.queue.key, broker.queue.intermediate_queue_key)
    return None if job_id is None else job_id.decode()


def test_jobs_above_the_running_limit_of_their_owner_keep_their_place(broker: Broker) -> None:
    for job_id in ("a1", "a2", "a3", "b1"):
        broker.enqueue(job_id)
    for expected in ("a1", "a2", "a3"):
        assert pop(broker) == expected
        assert broker.take_lease(expected, "e", 60, owner="ada", limit=1) is (expected == "a1")
        broker.ack(expected, has_ended=False)
    assert [position(broker, job_id, "ada") for job_id in ("a1", "a2", "a3")] == [None, 0, 1]
    assert broker.length() == 3
    assert broker.lost(["a1", "a2", "a3", "b1"]) == []
    assert not broker.drop_lost("a2")
    broker.release_lease("a1", "e", owner="ada")
    broker.enqueue("a4")
    assert [pop(broker) for _ in range(4)] == ["a2", "b1", "a4", None]
    broker.dequeue("a3", owner="ada")
    assert broker.length() == 0


def test_a_parked_job_is_queued_when_the_worker_of_the_running_one_died(broker: Broker) -> None:
    broker.take_lease("a1", "e", 0.05, owner="ada", limit=1)
    for job_id in ("a2", "a3"):
        assert not broker.take_lease(job_id, "e", 60, owner="ada", limit=1)
    broker.unpark(1)
    assert pop(broker) is None
    wait_until_expired(broker, "a1")
    broker.unpark(1)
    broker.unpark(1)  # the first one still waits
    assert (pop(broker), pop(broker)) == ("a2", None)
    broker.unpark(None)  # the limit was raised
    assert pop(broker) == "a3"
    assert broker.length() == 0


def test_one_worker_at_a_time_is_the_leader(broker: Broker) -> None:
    assert broker.lead("first", 60)
    assert broker.lead("first", 60)
    assert not broker.lead("second", 60)
    broker.resign("second")
    assert not broker.lead("second", 60)
    broker.resign("first")
    assert broker.lead("second", 0.001)
    while broker.connection.exists("uvos:leader"):
        time.sleep(0.001)
    assert broker.lead("first", 60)


def test_a_job_that_is_neither_queued_nor_leased_is_lost(broker: Broker) -> None:
    broker.enqueue("queued")
    broker.take_lease("leased", "e", 60, owner=None)
    assert broker.lost(["queued", "leased", "lost"]) == ["lost"]
    assert not broker.drop_lost("queued")
    assert not broker.drop_lost("leased")
    assert broker.drop_lost("lost")


def test_a_job_whose_worker_died_after_the_pop_can_be_queued_again(broker: Broker) -> None:
    broker.enqueue("a")
    broker.connection.lmove(broker.queue.key, broker.queue.intermediate_queue_key)
    assert broker.lost(["a"]) == ["a"]
    assert broker.popped() == ["a"]
    assert broker.drop_lost("a")
    broker.enqueue("a")
    assert position(broker, "a") == 0
    assert broker.popped() == []


def test_progress_is_visible_only_while_the_job_is_leased(broker: Broker) -> None:
    broker.publish_progress("a", progress())
    assert broker.live([record("a")]) == [Live(None, None)]
    assert broker.running(["a"]) == set()
    broker.take_lease("a", "e", 60, owner=None)
    assert broker.live([record("a")])[0].progress == progress()
    assert broker.running(["a"]) == {"a"}


def test_invalid_content_in_redis_is_ignored(broker: Broker) -> None:
    broker.take_lease("a", "e", 60, owner=None)
    broker.connection.set("uvos:progress:a", b"\xff not json")
    broker.connection.sadd("uvos:workers", b"evil", b"\xff", b"dead")
    broker.connection.set("uvos:worker:evil", b'{"name": 1}')
    broker.connection.rpush(broker.queue.key, b"\xff")
    broker.announce_worker(WorkerInfo(name="good", device="cpu"))
    assert broker.live([record("a")]) == [Live(None, None)]
    assert [worker.name for worker in broker.workers()] == ["good"]
    assert broker.lost(["b"]) == ["b"]
