"""Every setting of both processes, read once from the environment (UVOS_*) by `create_app` and the command lines."""

from pathlib import Path

from pydantic import Field, IPvAnyNetwork, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="UVOS_", frozen=True, use_attribute_docstrings=True)

    data_dir: Path = Path("data")
    """Uploads, results and the embedded queue lie here."""
    redis_url: SecretStr | None = None
    """redis://, rediss:// or unix://; None starts the embedded server."""
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)

    # --- who may ask
    api_keys: SecretStr | None = None
    """name:sha256 of each API key, separated by commas."""
    api_keys_file: Path | None = None
    """The same, one a line, read again when it changes; default: keys.txt in the data folder."""
    require_key: bool | None = None
    """Whether requests need a key; default: unless the service listens on loopback alone and has no keys."""

    allowed_hosts: list[str] = []
    """Names, besides localhost and addresses, to which a service without keys answers, as JSON; ["*"]: to any."""

    # --- whom to tell
    webhook_secret: SecretStr | None = Field(None, min_length=16)
    """Signs webhooks; None sends none. Each caller's own secret is made of it: `uvos keys webhook NAME`."""
    webhook_networks: list[IPvAnyNetwork] = []
    """Networks that webhooks may be sent to although they are not public, as JSON: ["10.1.0.0/16"]."""

    # --- what a request may ask for
    max_upload_bytes: int = Field(2 * 2**30, gt=0)
    max_queued_jobs: int = Field(1000, gt=0)
    """A POST beyond it is answered 503 with Retry-After."""
    max_queued_per_key: int = Field(100, gt=0)
    """Jobs of one API key that have not ended; a POST beyond it is answered 429."""
    max_running_per_key: int | None = Field(None, gt=0)
    """Jobs of one API key that run at once, the others wait; None: as many as there are workers."""
    default_model: str = "tiny"

    # --- what a video may hold
    max_frames: int = Field(5000, gt=0)
    max_pixels: int = Field(4096 * 2304, gt=0)
    """Of one frame."""
    max_duration_s: float = Field(3600, gt=0)
    """Of the part to segment."""
    max_decoded_bytes: int = Field(16 * 2**30, gt=0)
    """Of decoded frames on disk, at the model's resolution."""

    # --- how a job is run
    job_timeout_s: int = Field(3600, gt=0)
    """From decoding to masks; a job that takes longer fails."""
    max_attempts: int = Field(3, gt=0)
    """A job whose worker process dies this often fails."""
    lease_s: float = Field(6, gt=0.5)
    """A worker that shows no life for this long loses its job to another."""
    recovery_interval_s: float = Field(2, gt=0)
    """How often a worker looks for jobs that were lost."""
    shutdown_grace_s: float = Field(20, ge=0)
    """After SIGTERM a running job may still end within this time; then it is handed back."""
    result_ttl_s: int = Field(24 * 3600, gt=0)
    """A job that has ended is removed with its results after this time."""
    memory_budget_bytes: int = Field(6 * 2**30, gt=0)
    """For centroids and kept attention rows; a job that needs more fails and says so."""
    max_key_tokens: int = Field(40_000, gt=0)
    """key_ratio is lowered to stay below it, and the manifest warns."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ..."""
    dtype: str = Field("auto", pattern="^(auto|float32|bfloat16)$")
    weights_dir: Path | None = None
    """Where weights lie that were fetched by hand; default: `weights` in the data folder."""
    weights: Path | None = None
    """One file to use for the default model instead of its own weights."""
    allow_hub: bool = True
    """Whether a worker may fetch weights from the hub."""

    @property
    def keys_file(self) -> Path:
        return self.api_keys_file or self.data_dir / "keys.txt"

    @property
    def weights_folder(self) -> Path:
        return self.weights_dir or self.data_dir / "weights"
