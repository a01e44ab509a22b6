"""What a job's message asks for: message in, pipeline, result out. Runs in the warm child."""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch

from service.settings import Settings
from service.storage.folder import Storage, full_is_an_answer
from uvos.contract import Clustering, JobTiming, Stage, Workload
from uvos.errors import InternalError, OutOfMemoryBudget, UvosError
from uvos.models import find_model
from worker.models.loading import LoadedModel, choose_device, load_model
from worker.numerics import loops
from worker.pipeline import Budget, segment
from worker.video.request import DecodeLimits

log = logging.getLogger(__name__)

MODELS_KEPT = 2  # in memory; the one used longest ago goes first
PROGRESS_EVERY_S = 0.2
# Share of the whole that has gone when a stage begins, as measured with tiny on two cores.
BEGINS_AT = {Stage.decode: 0.0, Stage.features: 0.05, Stage.attention: 0.45, Stage.clustering: 0.65, Stage.masks: 0.75}
ENDS_AT = dict(zip(BEGINS_AT, [*list(BEGINS_AT.values())[1:], 1.0], strict=True))


class Stopped(Exception):
    """The parent wants this execution to end."""


class Runner:
    """Runs assignments one after the other with models that stay loaded."""

    def __init__(self, settings: Settings, send: Callable[[dict[str, Any]], None]) -> None:
        self.settings = settings
        self.send = send
        self.storage = Storage(settings.data_dir, result_ttl_s=settings.result_ttl_s)
        self.device = choose_device(settings.device)
        self._models: OrderedDict[tuple[str, bool], LoadedModel] = OrderedDict()
        self._cancelled: set[str] = set()
        self._lock = threading.Lock()
        self._sandbox: list[str] = []

    def warm_up(self) -> None:
        """Load the default model and compile what a CPU runs, so that the first job need not wait for it."""
        if self.device.type == "cpu":
            loops.prepare()
        try:
            self.model(self.settings.default_model, Clustering.algorithm1)
        except UvosError as error:
            log.warning("the default model is not loaded: %s", error)

    def about(self) -> dict[str, Any]:
        models = {model.entry.name: model.sha256 for model in self._models.values()}
        return {"device": str(self.device), "models": models, "sandbox": self._sandbox}

    def cancel(self, execution: str) -> None:
        with self._lock:
            self._cancelled.add(execution)

    def model(self, name: str, clustering: Clustering) -> LoadedModel:
        """The model of that name, loaded now or before."""
        key = (name, clustering is Clustering.windowed)  # windowed runs in float32
        if key not in self._models:
            settings = self.settings
            self._models[key] = load_model(
                find_model(name),
                weights=settings.weights if name == settings.default_model else None,
                weights_dir=settings.weights_folder,
                allow_hub=settings.allow_hub,
                device=self.device,
                dtype=settings.dtype,  # type: ignore[arg-type]  # a pattern holds it to the three
                clustering=clustering,
            )
            while len(self._models) > MODELS_KEPT:
                self._models.popitem(last=False)
        self._models.move_to_end(key)
        return self._models[key]

    def run(self, job_id: str, execution: str) -> None:
        """Do a job and tell the parent how it went; nothing that a job does ends the child."""
        try:
            timing = segment_video(job_id, execution, self)
            self.send({"done": execution, "timing": timing.model_dump(mode="json")})
        except Stopped:
            self.send({"stopped": execution})
        except UvosError as error:
            self.send({"failed": execution, "problem": error.problem().model_dump()})
        except (MemoryError, torch.OutOfMemoryError) as error:
            log.exception("job %s ran out of memory", job_id)
            problem = OutOfMemoryBudget(f"there is not enough memory for this job: {str(error)[:200]}").problem()
            self.send({"failed": execution, "problem": problem.model_dump(), "restart": True})
        except Exception as error:
            log.exception("job %s failed by a fault of the service", job_id)
            problem = InternalError("something went wrong in the service; its log has the particulars").problem()
            restart = isinstance(error, torch.AcceleratorError)  # nothing works after it in this process
            self.send({"failed": execution, "problem": problem.model_dump(), "restart": restart})
        finally:
            with self._lock:
                self._cancelled.discard(execution)

    def check(self, execution: str) -> None:
        with self._lock:
            if execution in self._cancelled:
                raise Stopped


class Reporter:
    """Tells the parent where a job is, and measures how long each stage takes."""

    def __init__(self, execution: str, runner: Runner) -> None:
        self.execution = execution
        self.runner = runner
        self.work: Workload | None = None
        self.seconds: dict[Stage, float] = {}
        self._stage = Stage.decode
        self._looked_at = time.monotonic()
        self._told_at = 0.0

    def begin(self) -> None:
        """Count from now on: a model that had to be loaded first says nothing about the next job."""
        self.seconds, self._looked_at = {}, time.monotonic()

    def look(self) -> None:
        """Count the time since the last look to the stage that ran."""
        now = time.monotonic()
        self.seconds[self._stage] = self.seconds.get(self._stage, 0.0) + now - self._looked_at
        self._looked_at = now

    def tell(self, stage: Stage, done: int, total: int | None) -> None:
        """Called by the pipeline; raises `Stopped` where the parent no longer wants the job."""
        self.runner.check(self.execution)
        self.look()
        begins, self._stage = stage != self._stage, stage
        if self._looked_at - self._told_at < PROGRESS_EVERY_S and done != total and not begins:
            return
        self._told_at = self._looked_at
        share = min(done / total, 1.0) if total else 0.0
        fraction = BEGINS_AT[stage] + share * (ENDS_AT[stage] - BEGINS_AT[stage])
        progress = {
            "execution": self.execution,
            "stage": stage.value,
            "frames_done": done,
            "frames_total": total,
            "fraction": round(fraction, 4),
            "work": self.work.model_dump() if self.work else None,
            "seconds": {stage.value: round(seconds, 3) for stage, seconds in self.seconds.items()},
            "device": str(self.runner.device),
        }
        self.runner.send({"progress": progress})

    def tell_work(self, work: Workload) -> None:
        self.work = work


def segment_video(job_id: str, execution: str, runner: Runner) -> JobTiming:
    """Segment the video of a job; its result lies in the execution's own folder until the parent publishes it.

    Returns:
        What it took.

    Raises:
        UvosError: what the job fails with.
        Stopped: the parent no longer wants it.
    """
    storage = runner.storage
    record = storage.record(job_id)
    out = storage.work_dir(job_id, execution)
    reporter = Reporter(execution, runner)
    reporter.tell(Stage.decode, 0, None)
    model = runner.model(record.params.model, record.params.clustering)
    reporter.begin()
    with full_is_an_answer(storage.root):
        out.mkdir()  # never its parents: a job deleted now must not come back as an empty folder
        segment(
            storage.input_path(job_id),
            record.params,
            model,
            out,
            budget=budget_of(runner.settings),
            name=record.video_name,
            job_id=job_id,
            on_progress=reporter.tell,
            on_work=reporter.tell_work,
        )
    reporter.look()
    assert reporter.work is not None
    return JobTiming(
        model=record.params.model,
        device=str(runner.device),
        clustering=record.params.clustering,
        motion=record.params.motion,
        video_bytes=record.video_bytes,
        work=reporter.work,
        seconds=reporter.seconds,
    )


def budget_of(settings: Settings) -> Budget:
    """The limits of these settings."""
    return Budget(
        decode=DecodeLimits(
            max_frames=settings.max_frames,
            max_pixels=settings.max_pixels,
            max_duration_s=settings.max_duration_s,
            max_bytes=settings.max_decoded_bytes,
            timeout_s=settings.job_timeout_s,
        ),
        memory_bytes=settings.memory_budget_bytes,
        max_key_tokens=settings.max_key_tokens,
    )
