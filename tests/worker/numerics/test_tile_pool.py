import threading
import time

import pytest
import torch

from worker.numerics.tile_pool import Crew


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def crew(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield Crew(torch.device("cpu"))
    torch.set_num_threads(before)


@pytest.mark.parametrize(("total", "step"), [(0, 3), (1, 3), (3, 3), (10, 3), (9, 1)])
def test_every_row_is_worked_on_once(crew, total, step):
    seen, lock = [], threading.Lock()

    def work(start, stop):
        with lock:
            seen.extend(range(start, stop))

    crew.run(work, total, step)
    assert sorted(seen) == list(range(total))


@pytest.mark.parametrize(("total", "most"), [(0, 3), (1, 3), (7, 3), (12, 3), (13, 3), (699, 128)])
def test_ranges_of_a_step_are_as_many_for_every_thread(crew, total, most):
    step = crew.step(total, most)
    assert 1 <= step <= most
    ranges = -(-total // step)
    assert ranges <= crew.count * -(-total // (crew.count * most))


def test_each_operation_stays_in_its_thread_and_the_caller_keeps_its_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    inside = []
    Crew(torch.device("cpu")).run(lambda *_: inside.append(torch.get_num_threads()), 4, 1)
    assert set(inside) == {1}
    assert torch.get_num_threads() == 2
    later = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [2]
    torch.set_num_threads(before)


def test_what_the_work_raises_reaches_the_caller_and_ends_the_run(crew):
    begun = []

    def work(start, _stop):
        begun.append(start)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        crew.run(work, 1000, 1)
    assert len(begun) < 10
    crew.run(lambda *_: begun.clear(), 10, 1)
    assert begun == []


def test_the_caller_breathes_meanwhile_and_may_stop_the_run(crew):
    class StopError(Exception):
        pass

    def breathe():
        raise StopError

    done = []

    def work(start, _stop):
        time.sleep(0.01)
        done.append(start)

    with pytest.raises(StopError):
        crew.run(work, 10_000, 1, breathe)
    count = len(done)
    assert count < 1000
    time.sleep(0.05)
    assert len(done) == count, "nothing runs on after the caller has been told"
