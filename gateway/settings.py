"""Process settings: what flags and the environment say, fixed at start. routes.yaml says the rest."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self, cast, get_args

from gateway.telemetry.logs import LogFormat


@dataclass(frozen=True, slots=True)
class Settings:
    """Each field: meaning, and the environment variable behind it. Flags override the environment."""

    admin_key: str | None = None
    """HEADGATE_ADMIN_KEY, or the content of the file HEADGATE_ADMIN_KEY_FILE. None: one is made."""
    log_level: str = "info"
    """HEADGATE_LOG_LEVEL"""
    log_format: LogFormat = "auto"
    """HEADGATE_LOG_FORMAT: json, text, or auto (text on a terminal)."""
    traces: str = "none"
    """OTEL_TRACES_EXPORTER: none, console, or otlp (needs the `otlp` extra)."""

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """Raises ValueError for a value that is not allowed, OSError for a key file that cannot be read."""
        admin_key = environ.get("HEADGATE_ADMIN_KEY")
        if (key_file := environ.get("HEADGATE_ADMIN_KEY_FILE")) is not None:
            admin_key = Path(key_file).read_text().rstrip("\n")
        log_format = environ.get("HEADGATE_LOG_FORMAT", "auto")
        if log_format not in get_args(LogFormat):
            raise ValueError(f"HEADGATE_LOG_FORMAT is json, text or auto, not {log_format!r}")
        return cls(
            admin_key=admin_key,
            log_level=environ.get("HEADGATE_LOG_LEVEL", "info"),
            log_format=cast("LogFormat", log_format),
            traces=environ.get("OTEL_TRACES_EXPORTER", "none"),
        )
