"""What is said in Redis: each job is queued once, held by one, and nothing there is believed."""

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from service.jobs.queue import Broker, connect
from uvos.contract import JobProgress, Stage, WorkerInfo


@pytest.fixture
def broker(redis_url: str) -> Iterator[Broker]:
    connection = connect(redis_url)
    yield Broker(connection, job_timeout_s=60)
    connection.close()


def progress(execution: str = "e") -> JobProgress:
    return JobProgress(execution=execution, started_at=datetime.now(UTC), stage=Stage.features)


def test_a_job_is_queued_once_however_often_that_is_asked(broker: Broker) -> None:
    for _ in range(3):
        broker.enqueue("a")
    assert broker.length() == 1
    assert broker.position("a") == 0
    broker.enqueue("b", at_front=True)
    assert (broker.position("b"), broker.position("a")) == (0, 1)


def test_a_job_taken_out_of_the_queue_leaves_nothing(broker: Broker) -> None:
    broker.enqueue("a")
    broker.dequeue("a")
    assert broker.position("a") is None
    assert not broker.connection.exists("rq:job:a")


def test_the_queue_carries_an_id_and_nothing_that_is_code(broker: Broker) -> None:
    broker.enqueue("a")
    data: bytes = broker.queue.fetch_job("a").data
    assert data == b'["worker.jobs.tasks.segment_video", null, [], {"job_id": "a"}]'


def test_one_holds_a_job_until_it_lets_go_or_falls_silent(broker: Broker) -> None:
    assert broker.take_lease("a", "first", 60, owner=None)
    assert not broker.take_lease("a", "second", 60, owner=None)
    assert broker.renew_lease("a", "first", 60, owner=None)
    assert not broker.renew_lease("a", "second", 60, owner=None)
    broker.end_lease("a", "second", owner=None)
    assert broker.is_held("a")
    broker.end_lease("a", "first", owner=None)
    assert broker.take_lease("a", "second", 0.001, owner=None)
    while broker.is_held("a"):
        pass
    assert broker.take_lease("a", "third", 60, owner=None)


def test_an_owner_has_so_many_running(broker: Broker) -> None:
    assert broker.take_lease("a", "1", 60, owner="ada", limit=2)
    assert broker.take_lease("b", "2", 0.001, owner="ada", limit=2)
    assert broker.take_lease("c", "3", 60, owner="bob", limit=2)
    while broker.is_held("b"):
        pass
    assert broker.take_lease("d", "4", 60, owner="ada", limit=2)  # b's holder fell silent
    assert not broker.take_lease("e", "5", 60, owner="ada", limit=2)
    assert broker.running("ada") == 2
    broker.end_lease("a", "1", owner="ada")
    assert broker.take_lease("e", "5", 60, owner="ada", limit=2)


def test_lost_is_what_nobody_holds_and_nobody_queued(broker: Broker) -> None:
    broker.enqueue("queued")
    broker.take_lease("held", "e", 60, owner=None)
    assert broker.lost(["queued", "held", "lost"]) == ["lost"]
    assert not broker.forget_lost("queued")
    assert not broker.forget_lost("held")
    assert broker.forget_lost("lost")


def test_a_job_left_between_queue_and_worker_can_be_queued_again(broker: Broker) -> None:
    broker.enqueue("a")
    broker.connection.lmove(broker.queue.key, broker.queue.intermediate_queue_key)
    assert broker.lost(["a"]) == ["a"]
    assert broker.popped() == ["a"]
    assert broker.forget_lost("a")
    broker.enqueue("a")
    assert broker.position("a") == 0
    assert broker.popped() == []


def test_progress_is_told_while_somebody_holds_the_job(broker: Broker) -> None:
    broker.report("a", progress())
    assert broker.progress("a") is None
    broker.take_lease("a", "e", 60, owner=None)
    assert broker.progress("a") is not None


def test_what_is_written_by_others_is_not_believed(broker: Broker) -> None:
    broker.take_lease("a", "e", 60, owner=None)
    broker.connection.set("uvos:progress:a", b"\xff not json")
    broker.connection.set("uvos:worker:evil", b'{"name": 1}')
    broker.connection.rpush(broker.queue.key, b"\xff")
    broker.announce_worker(WorkerInfo(name="good", device="cpu"))
    assert broker.progress("a") is None
    assert [worker.name for worker in broker.workers()] == ["good"]
    assert broker.lost(["b"]) == ["b"]
