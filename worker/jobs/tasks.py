"""Executions of jobs in the child process: from the job's record to its result."""

import logging
import os
import resource
import threading
import time
from collections import OrderedDict
from errno import EACCES, EIO, ENOTDIR, EPERM, EROFS, ESTALE

import torch

from service.settings import Settings
from service.storage.durable import storage_full_errors
from service.storage.folder import Storage
from uvos.contract import Clustering, JobProgress, JobTiming, Stage, Workload
from uvos.errors import InternalError, OutOfMemoryBudget, UvosError
from uvos.models import find_model
from worker.jobs.child_process import Send
from worker.jobs.messages import Done, Failed, ProgressUpdate, Ready, Run, Stopped, StorageFailed
from worker.models.loading import LoadedModel, choose_device, load_model
from worker.numerics.choose import choose_backend
from worker.pipeline import segment
from worker.run import Budget, Extras, SegmentationRun
from worker.video.request import DecodeLimits

log = logging.getLogger(__name__)

MODELS_KEPT = 2  # loaded at once; the least recently used is dropped
PROGRESS_INTERVAL_S = 0.2
STORAGE_ERRORS = {EACCES, EPERM, EROFS, EIO, ESTALE, ENOTDIR}  # of a data folder that is not available
# Share of the total time at which a stage begins, measured with `tiny` on two CPU cores.
STAGE_START = {
    Stage.decode: 0.0,
    Stage.motion: 0.05,
    Stage.features: 0.2,
    Stage.attention: 0.45,
    Stage.clustering: 0.65,
    Stage.masks: 0.75,
}
STAGE_END = dict(zip(STAGE_START, [*list(STAGE_START.values())[1:], 1.0], strict=True))


class Cancelled(Exception):
    """The execution was cancelled by the worker."""


class CancellationToken:
    """Cancels one execution; set by the receiving thread, checked by the pipeline at every progress report."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def cancel(self) -> None:
        self._event.set()

    def raise_if_cancelled(self) -> None:
        """Raise `Cancelled` once the execution was cancelled."""
        if self._event.is_set():
            raise Cancelled


class TaskRunner:
    """Runs executions one after another with models that stay loaded."""

    def __init__(self, settings: Settings, send: Send) -> None:
        self.settings = settings
        self.send = send
        self.storage = Storage(settings.data_dir, result_ttl_s=settings.result_ttl_s)
        self.device = choose_device(settings.device)
        self.sandbox: list[str] = []
        """The mechanisms that confined the video decoder of the last job."""
        self._models: OrderedDict[tuple[str, bool], LoadedModel] = OrderedDict()
        self._tokens: dict[str, CancellationToken] = {}
        self._lock = threading.Lock()

    def warm_up(self) -> None:
        """Load the default model and compile the numerics, so that the first job does not wait for it."""
        choose_backend(self.device)  # compiles
        try:
            self.model(self.settings.default_model, Clustering.algorithm1)
        except UvosError as error:
            log.warning("the default model is not loaded: %s", error)

    def ready(self) -> Ready:
        models = {model.entry.name: model.sha256 for model in self._models.values()}
        memory, peak = device_memory(self.device)
        return Ready(
            device=str(self.device),
            models=models,
            sandbox=self.sandbox,
            memory_bytes=memory,
            memory_peak_bytes=peak,
        )

    def cancel(self, execution: str) -> None:
        self.token(execution).cancel()

    def token(self, execution: str) -> CancellationToken:
        """The token of an execution; a cancellation may arrive before the execution begins."""
        with self._lock:
            return self._tokens.setdefault(execution, CancellationToken())

    def model(self, name: str, clustering: Clustering) -> LoadedModel:
        """The model of that name, from memory if it is loaded."""
        key = (name, clustering is Clustering.windowed)  # windowed runs in float32
        if key not in self._models:
            settings = self.settings
            self._models[key] = load_model(
                find_model(name),
                weights=settings.weights if name == settings.default_model else None,
                weights_dir=settings.weights_folder,
                allow_hub=settings.allow_hub,
                device=self.device,
                dtype=settings.dtype,  # type: ignore[arg-type]  # a pattern restricts it to these values
                clustering=clustering,
            )
            while len(self._models) > MODELS_KEPT:
                self._models.popitem(last=False)
        self._models.move_to_end(key)
        return self._models[key]

    def run(self, run: Run) -> None:
        """Run an execution and send its outcome; no failure of a job ends the process."""
        try:
            self.send(Done(execution=run.execution, timing=segment_video(run, self)))
        except Cancelled:
            self.send(Stopped(execution=run.execution))
        except UvosError as error:
            self.send(Failed(execution=run.execution, problem=error.problem()))
        except (MemoryError, torch.OutOfMemoryError) as error:
            log.exception("job %s ran out of memory", run.job_id)
            problem = OutOfMemoryBudget(f"this job needs more memory than there is: {str(error)[:200]}").problem()
            self.send(Failed(execution=run.execution, problem=problem, restart=True))
        except Exception as error:
            if isinstance(error, OSError) and error.errno in STORAGE_ERRORS:
                self.send(StorageFailed(execution=run.execution, reason=str(error)))
                return
            log.exception("job %s failed with an internal error", run.job_id)
            problem = InternalError("internal error; the log of the worker has the traceback").problem()
            restart = isinstance(error, torch.AcceleratorError)  # the CUDA context is unusable afterwards
            self.send(Failed(execution=run.execution, problem=problem, restart=restart))
        finally:
            with self._lock:
                self._tokens.pop(run.execution, None)


def device_memory(device: torch.device) -> tuple[int, int]:
    """The memory of a device and the peak that this process used, bytes; main memory on a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory, torch.cuda.max_memory_reserved(device)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return memory, 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kibibytes on Linux


class ProgressReporter:
    """Sends the progress of one execution to the worker and measures the time of each stage."""

    def __init__(self, run: Run, runner: TaskRunner) -> None:
        self.work: Workload | None = None
        self.seconds: dict[Stage, float] = {}
        self.has_preview = False
        self._run = run
        self._runner = runner
        self._token = runner.token(run.execution)
        self._stage = Stage.decode
        self._measured_at = time.monotonic()
        self._sent_at = 0.0

    def restart_clock(self) -> None:
        """Measure from now on: the time to load a model says nothing about the next job."""
        self.seconds, self._measured_at = {}, time.monotonic()

    def measure(self) -> None:
        """Add the time since the last measurement to the current stage."""
        now = time.monotonic()
        self.seconds[self._stage] = self.seconds.get(self._stage, 0.0) + now - self._measured_at
        self._measured_at = now

    def on_progress(self, stage: Stage, done: int, total: int | None) -> None:
        """Called by the pipeline.

        Raises:
            Cancelled: The worker has cancelled the execution.
        """
        self._token.raise_if_cancelled()
        self.measure()
        stage_begins, self._stage = stage != self._stage, stage
        if self._measured_at - self._sent_at < PROGRESS_INTERVAL_S and done != total and not stage_begins:
            return
        self._sent_at = self._measured_at
        share = min(done / total, 1.0) if total else 0.0
        fraction = STAGE_START[stage] + share * (STAGE_END[stage] - STAGE_START[stage])
        progress = JobProgress(
            execution=self._run.execution,
            started_at=self._run.started_at,
            stage=stage,
            frames_done=done,
            frames_total=total,
            fraction=round(fraction, 4),
            work=self.work,
            seconds={stage: round(seconds, 3) for stage, seconds in self.seconds.items()},
            device=str(self._runner.device),
            has_preview=self.has_preview,
        )
        self._runner.send(ProgressUpdate(progress=progress))

    def on_preview(self) -> None:
        """Called by the pipeline when the preview is complete."""
        self.has_preview = True
        self._sent_at = 0.0  # the next report is sent

    def on_work(self, work: Workload) -> None:
        """Called by the pipeline when the amount of work is known."""
        self.work = work


def segment_video(run: Run, runner: TaskRunner) -> JobTiming:
    """Segment the video of a job into the output folder of the execution.

    Returns:
        The time that each stage took.

    Raises:
        UvosError: The failure of the job.
        Cancelled: The worker has cancelled the execution.
    """
    storage = runner.storage
    record = storage.record(run.job_id)
    out = storage.work_dir(run.job_id, run.execution)
    reporter = ProgressReporter(run, runner)
    reporter.on_progress(Stage.decode, 0, None)
    model = runner.model(record.params.model, record.params.clustering)
    reporter.restart_clock()
    with storage_full_errors(storage.root):
        out.mkdir()  # without parents: a job that was deleted must not come back as an empty folder
        manifest = segment(
            SegmentationRun(
                source=storage.input_path(run.job_id),
                params=record.params,
                model=model,
                out=out,
                budget=budget_of(runner.settings),
                name=record.video_name,
                extras=Extras(source=True),
                job_id=run.job_id,
                on_progress=reporter.on_progress,
                on_workload=reporter.on_work,
                on_preview=reporter.on_preview,
            )
        )
    (out / "preview.jpg").unlink(missing_ok=True)  # the result replaces it
    reporter.measure()
    runner.sandbox = manifest.sandbox
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
