"""Job files: TOML text from a path, from text, or from a dict (keys as in docs/jobs.md)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Mapping


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (str, Path)):
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_value(str(key))} = {_value(one)}" for key, one in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_value, value)) + "]"
    raise TypeError(f"{type(value).__name__} has no TOML form: {value!r}")


def to_toml(job: Mapping[str, Any]) -> str:
    return "".join(f"{_value(str(key))} = {_value(value)}\n" for key, value in job.items())


def read_job(job: str | Path | Mapping[str, Any], directory: str | Path | None) -> tuple[str, str]:
    """TOML text, and the absolute directory that its relative paths start from: of the file, else the working one."""
    if isinstance(job, Path):
        return job.read_text(), str((Path(directory) if directory else job.parent).resolve())
    text = job if isinstance(job, str) else to_toml(job)
    return text, str(Path(directory or ".").resolve())
