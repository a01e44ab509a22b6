"""The settings of the API and the workers, read from the environment (UVOS_*) once per process."""

from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import Field, IPvAnyNetwork, PositiveFloat, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from uvos.weights import best_model


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="UVOS_", frozen=True, use_attribute_docstrings=True)

    data_dir: Path = Path("data")
    """Folder for uploads, results and the embedded queue."""
    redis_url: SecretStr | None = None
    """redis://, rediss:// or unix://; None starts the embedded server."""
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    log_format: Literal["text", "json"] = "text"
    """json writes one JSON object per line, with job id and trace id."""

    # --- access control
    api_keys: SecretStr | None = None
    """API keys as name:sha256, separated by commas."""
    api_keys_file: Path | None = None
    """API keys, one per line; read again when it changes. Default: keys.txt in the data folder."""
    require_key: bool | None = None
    """Whether requests need an API key. Default: false if the service listens on loopback only and has no keys."""
    allowed_hosts: list[str] = []
    """JSON list of host names, besides localhost and IP addresses, that a service without keys accepts in `Host` and
    `Origin`; ["*"] accepts any."""

    # --- webhooks
    webhook_secret: SecretStr | None = Field(None, min_length=16)
    """Signs webhooks; None disables them. The secret of each API key is derived from it: `uvos keys webhook NAME`."""
    webhook_networks: list[IPvAnyNetwork] = []
    """JSON list of networks that webhooks may be sent to although they are not public: ["10.1.0.0/16"]."""
    webhook_retry_delays_s: tuple[PositiveFloat, ...] = Field(
        (5, 30, 120, 600, 1800, 3600, 7200, 14400, 28800), min_length=1
    )
    """Delays between the attempts to deliver a webhook, as JSON list."""
    webhook_poll_interval_s: PositiveFloat = 1
    """How often the API checks for webhooks to send."""

    # --- limits per request
    fetch_networks: list[IPvAnyNetwork] = []
    """JSON list of networks that `video_url` may be fetched from although they are not public: ["10.1.0.0/16"]."""
    max_upload_bytes: int = Field(2 * 2**30, gt=0)
    max_queued_jobs: int = Field(1000, gt=0)
    """Waiting jobs; further requests get 503 with Retry-After."""
    max_queued_per_key: int = Field(100, gt=0)
    """Jobs of one API key that have not ended; further requests get 429."""
    max_running_per_key: int | None = Field(None, gt=0)
    """Jobs of one API key that run at the same time; None for no limit."""
    model: str | None = None
    """Default model; None for the best one whose weights are on this machine."""

    # --- limits per video
    max_frames: int = Field(5000, gt=0)
    max_pixels: int = Field(4096 * 2304, gt=0)
    """Pixels per frame."""
    max_duration_s: float = Field(3600, gt=0)
    """Duration of the part to segment."""
    max_decoded_bytes: int = Field(16 * 2**30, gt=0)
    """Decoded frames on disk, at model input resolution."""

    # --- execution
    job_timeout_s: int = Field(3600, gt=0)
    """A job that takes longer, from decoding to masks, fails."""
    max_attempts: int = Field(3, gt=0)
    """A job whose worker process crashes this often fails."""
    lease_s: float = Field(6, gt=0.5)
    """A job whose worker sends no heartbeat for this long is given to another worker."""
    recovery_interval_s: float = Field(2, gt=0, le=10)
    """How often a worker searches for lost jobs and updates its heartbeat."""
    shutdown_grace_s: float = Field(20, ge=0)
    """After SIGTERM a running job may finish within this time; then it is handed back."""
    result_ttl_s: int = Field(24 * 3600, gt=0)
    """A job that has ended is deleted with its results after this time."""
    memory_budget_bytes: int = Field(6 * 2**30, gt=0)
    """Memory for centroids and cached attention rows; a job that needs more fails."""
    max_key_tokens: int = Field(40_000, gt=0)
    """key_ratio is lowered to stay below it, with a warning in the manifest."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ..."""
    dtype: str = Field("auto", pattern="^(auto|float32|bfloat16|int8)$")
    """auto, float32, bfloat16, or int8 on a CPU."""
    weights_dir: Path | None = None
    """Folder of downloaded weights. Default: `weights` in the data folder."""
    weights: Path | None = None
    """Weights file of the default model, instead of its own."""
    allow_hub: bool = True
    """Whether a worker may download weights from the hub."""

    def json_without_secrets(self) -> str:
        """These settings as JSON, for a process that must not hold secrets."""
        return self.model_dump_json(exclude={name for name, value in self if isinstance(value, SecretStr)})

    @property
    def keys_file(self) -> Path:
        return self.api_keys_file or self.data_dir / "keys.txt"

    @property
    def weights_folder(self) -> Path:
        return self.weights_dir or self.data_dir / "weights"

    @cached_property
    def default_model(self) -> str:
        """The model of jobs that name none."""
        return self.model or best_model(self.weights_folder)
