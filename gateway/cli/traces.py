"""What commands say of traces, and how they are told whose requests ask for which model."""

from gateway.replay.mixes import SOURCES

TRACES = f"mixed, {', '.join(SOURCES)} (made); mixed-files (from --trace-dir); or a file"


def models_of(text: str | None) -> dict[str, tuple[str, ...]]:
    """`TENANT=MODEL+MODEL,...`. Raises ValueError."""
    pairs = [part.partition("=") for part in (text or "").split(",") if part]
    if not all(sign for _, sign, _ in pairs):
        raise ValueError(f"--models is TENANT=MODEL+MODEL,...; not {text!r}")
    return {tenant: tuple(names.split("+")) for tenant, _, names in pairs}
