"""Time is counted to the stage in which it is spent."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from uvos.contract import Stage
from worker.stopwatch import Stopwatch


def test_a_nested_stage_does_not_count_towards_the_enclosing_one() -> None:
    stopwatch = Stopwatch()
    with stopwatch.stage(Stage.decode):
        time.sleep(0.05)
        for _ in range(2):
            with stopwatch.stage(Stage.features):
                time.sleep(0.1)
    report = stopwatch.report()
    assert report["decode"] == pytest.approx(0.05, abs=0.04)
    assert report["features"] == pytest.approx(0.2, abs=0.04)
    assert report["total"] >= report["decode"] + report["features"]


def test_tiles_of_concurrent_threads_count_as_wall_clock_time() -> None:
    stopwatch = Stopwatch()

    def work(_: int) -> None:
        with stopwatch.tile(Stage.attention, threads=2):
            time.sleep(0.1)

    with stopwatch.stage(Stage.clustering), ThreadPoolExecutor(2) as pool:
        list(pool.map(work, range(4)))
        time.sleep(0.05)
    report = stopwatch.report()
    assert report["attention"] == pytest.approx(0.2, abs=0.04)
    assert report["clustering"] == pytest.approx(0.05, abs=0.04)
