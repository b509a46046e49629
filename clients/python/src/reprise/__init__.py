"""Client of the Reprise daemons: rollout jobs, groups under leases for trainers, sandboxes (docs/python.md)."""

from reprise._wire import RepriseError
from reprise.aio import AsyncClient
from reprise.client import Client, ExecResult
from reprise.job import to_toml
from reprise.records import Group, Lease, Record, parse_record

__all__ = [
    "AsyncClient", "Client", "ExecResult", "Group", "Lease", "Record", "RepriseError", "parse_record", "to_toml",
]  # fmt: skip
