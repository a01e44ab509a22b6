import threading
import time

import pytest
import torch

from worker.numerics.tile_pool import ThreadBuffers, TilePool


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def pool(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield TilePool(request.param)
    torch.set_num_threads(before)


@pytest.mark.parametrize(("total", "step"), [(0, 3), (1, 3), (3, 3), (10, 3), (9, 1)])
def test_every_row_is_processed_once(pool, total, step):
    seen, lock = [], threading.Lock()

    def work(start, stop):
        with lock:
            seen.extend(range(start, stop))

    pool.run(work, total, step)
    assert sorted(seen) == list(range(total))


@pytest.mark.parametrize(("total", "most"), [(0, 3), (1, 3), (7, 3), (12, 3), (13, 3), (699, 128)])
def test_every_thread_gets_the_same_number_of_ranges(pool, total, most):
    step = pool.step(total, most)
    assert 1 <= step <= most
    ranges = -(-total // step)
    assert ranges <= pool.threads * -(-total // (pool.threads * most))


def test_each_operation_stays_in_its_thread_and_the_caller_keeps_its_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    inside = []
    TilePool(2).run(lambda *_: inside.append(torch.get_num_threads()), 4, 1)
    assert set(inside) == {1}
    assert torch.get_num_threads() == 2
    later = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [2]
    torch.set_num_threads(before)


def test_an_exception_in_a_tile_reaches_the_caller_and_ends_the_run(pool):
    begun = []

    def work(start, _stop):
        begun.append(start)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        pool.run(work, 1000, 1)
    assert len(begun) < 10
    pool.run(lambda *_: begun.clear(), 10, 1)
    assert begun == []


@pytest.mark.parametrize("threads", [1, 2])
def test_pulses_come_while_tiles_run_and_their_exception_cancels_the_run(threads):
    class CancelledError(Exception):
        pass

    def on_pulse(*_):
        raise CancelledError

    done = []

    def work(start, _stop):
        time.sleep(0.01)
        done.append(start)

    with pytest.raises(CancelledError):
        TilePool(threads, on_pulse).run(work, 10_000, 1)
    count = len(done)
    assert count < 1000
    time.sleep(0.05)
    assert len(done) == count, "a tile ran after the cancellation was raised"


def test_pulses_repeat_the_progress_last_reported():
    pulses = []
    pool = TilePool(1, lambda done, total: pulses.append((done, total)))
    pool.advance(3, 7)
    pool.run(lambda *_: None, 2, 1)
    assert pulses == [(3, 7)] * 3


def test_buffers_of_a_thread_are_reused_and_grow():
    buffers = ThreadBuffers(torch.device("cpu"))
    first = buffers.get("a", 4, 3)
    assert buffers.get("a", 2, 3).data_ptr() == first.data_ptr()
    assert buffers.get("b", 4, 3).data_ptr() != first.data_ptr()
    assert buffers.get("a", 5, 3).shape == (5, 3)
    assert buffers.get("a", 2, 9).shape == (2, 9)
    other = []
    thread = threading.Thread(target=lambda: other.append(buffers.get("a", 2, 9).data_ptr()))
    thread.start()
    thread.join()
    assert other != [buffers.get("a", 2, 9).data_ptr()]
