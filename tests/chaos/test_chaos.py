"""The chaos scenarios, shortened; `make chaos` runs them at full length."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos import scenarios
from tests.chaos.fleet import REPOSITORY, Fleet


@pytest.fixture(scope="module")
def shared_fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with Fleet(tmp_path_factory.mktemp("fleet")) as fleet:
        yield fleet


@pytest.fixture
def fleet(shared_fleet: Fleet) -> Fleet:
    shared_fleet.restore()
    return shared_fleet


def test_no_job_is_lost_or_published_twice_under_random_kills(fleet: Fleet) -> None:
    scenarios.storm(fleet, jobs=30, kill_every_s=1.5, queue_kills=1, job_s=0.2)


def test_accepted_jobs_end_once_after_power_failures(fleet: Fleet) -> None:
    scenarios.power_loss(fleet, times=3)


def test_a_job_ends_once_at_whichever_step_its_worker_is_killed(fleet: Fleet) -> None:
    scenarios.kill_at_each_step(fleet)


def test_a_worker_suspended_beyond_its_lease_publishes_nothing(fleet: Fleet) -> None:
    scenarios.stalls(fleet, count=3)


def test_jobs_survive_a_redis_outage(fleet: Fleet) -> None:
    scenarios.queue_down(fleet, seconds=1)


def test_jobs_are_restored_from_storage_after_flushall(fleet: Fleet) -> None:
    scenarios.flushed(fleet, jobs=5)


def test_malicious_redis_content_is_not_executed(fleet: Fleet) -> None:
    scenarios.poisoned(fleet)


def test_a_file_that_crashes_its_worker_fails_alone(fleet: Fleet) -> None:
    scenarios.poison_file(fleet)


def test_a_frozen_redis_is_reported_within_three_seconds(fleet: Fleet) -> None:
    scenarios.frozen_queue(fleet)


def test_concurrent_posts_with_one_idempotency_key_create_one_job(fleet: Fleet) -> None:
    scenarios.same_key(fleet)


def test_cancellation_takes_effect_in_time(fleet: Fleet) -> None:
    scenarios.cancelling(fleet, times=2)


def test_a_deleted_job_leaves_no_files(fleet: Fleet) -> None:
    scenarios.deleting(fleet)


def test_a_full_disk_is_reported_and_leaves_nothing_partial() -> None:
    if subprocess.run(["unshare", "-rm", "true"], check=False, capture_output=True).returncode:
        pytest.skip("no small disk can be mounted here")
    program = [sys.executable, "-m", "tests.chaos", "full_disk", "full_disk_at_the_end"]
    done = subprocess.run(program, cwd=REPOSITORY, env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_worker_hands_its_job_back_on_sigterm(tmp_path: Path) -> None:
    with Fleet(tmp_path) as fleet:
        scenarios.stopping(fleet)
