"""A child process that cannot start."""

from service.settings import Settings
from worker.jobs.child_process import Runner, Send, serve_worker


def create_runner(_: Settings, __: Send) -> Runner:
    raise RuntimeError("no such device")


if __name__ == "__main__":
    serve_worker(create_runner)
