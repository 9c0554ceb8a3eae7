"""Everything that comes from the environment, in one object.

`tiebreak up` fills `DATABASE_URL` and `REDIS_URL` from the embedded servers before it starts the children,
so that every process below it sees plain settings and knows nothing about where the servers came from.
"""

from functools import cache
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Settings of one process. Each field's environment variable is its alias, or its name in capitals."""

    model_config = SettingsConfigDict(env_file=None, extra="ignore", populate_by_name=True)

    data: Path = Field(default=Path(".tiebreak"), alias="TIEBREAK_DATA")
    """Embedded servers, artifacts, worker scratch space and logs live under this directory."""

    database_url: str = Field(default="", alias="DATABASE_URL")
    """`postgresql+psycopg://…`; empty means the embedded PostgreSQL under `data`."""

    redis_url: str = Field(default="", alias="REDIS_URL")
    """`redis://…` or `unix://…`; empty means the embedded server under `data`."""

    artifacts_url: str = Field(default="", alias="ARTIFACTS_URL")
    """fsspec URL of the artifact store; empty means `data/artifacts`."""

    model: str = Field(default="", alias="MODEL")
    """Hub id or directory of the first policy; empty means the demo policy, built on this machine."""

    public_url: str = Field(default="http://127.0.0.1:8000", alias="TIEBREAK_URL")
    """Where browsers reach the web process; decides the cookie's Secure flag and the links that are printed."""

    trusted_proxies: str = Field(default="127.0.0.1", alias="TIEBREAK_TRUSTED_PROXIES")
    """Addresses whose X-Forwarded-For is believed (uvicorn's --forwarded-allow-ips)."""

    pool_size: int = Field(default=10, alias="TIEBREAK_POOL_SIZE")
    """Database connections, and therefore concurrent requests that touch the database, per process."""

    lease_minutes: int = Field(default=30, alias="TIEBREAK_LEASE_MINUTES")
    """How long a comparison stays with an annotator who has gone quiet."""

    run_lease_seconds: int = Field(default=60, alias="TIEBREAK_RUN_LEASE_SECONDS")
    """A running run whose worker has not been heard of for this long is taken for lost."""

    heartbeat_seconds: float = Field(default=10, alias="TIEBREAK_HEARTBEAT_SECONDS")
    tick_seconds: float = Field(default=5, alias="TIEBREAK_TICK_SECONDS")
    """How often the reconciler looks at every live round, run and lease."""

    @property
    def artifacts(self) -> str:
        return (self.artifacts_url or (self.data.resolve() / "artifacts").as_uri()).rstrip("/")


@cache
def settings() -> Settings:
    """The settings of this process, read once. Tests call `settings.cache_clear()` after changing the environment."""
    return Settings()
