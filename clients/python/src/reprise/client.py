"""Blocking client of both daemons. Every method raises RepriseError with the daemon's own line."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Iterable, Iterator, Mapping

import grpc

from reprise._wire import OPTIONS, ROLLOUT, SANDBOX, RepriseError, Service, error_of, message
from reprise.job import read_job
from reprise.records import Group, Lease, Record, lease_of, parse_record

WAIT_S = 1.0  # how long one lease of an iterator waits before it looks whether the job has ended


def request_of(package: str, name: str, **fields: Any) -> Any:
    return message(f"{package}.{name}")(**fields)


def lease_request(job_id: str, max_groups: int, lease_s: float, wait_s: float, in_order: bool) -> Any:
    return request_of(
        ROLLOUT, "LeaseRequest", job_id=job_id, max_groups=max_groups, lease_ms=round(lease_s * 1000),
        wait_ms=round(wait_s * 1000), in_order=in_order,
    )  # fmt: skip


def weights_fields(
    directory: str | Path, version: int, running: str, kv: str, model: str | Path
) -> dict[str, Any]:
    model = str(Path(model).resolve()) if model else ""
    return {"directory": str(Path(directory).resolve()), "version": version, "running": running, "kv": kv, "model": model}


def settle_request(groups: Iterable[Group]) -> Any:
    groups = list(groups)
    jobs = {group.job_id for group in groups}
    if len(jobs) != 1:
        raise ValueError(f"groups of one job are settled together, these are of {len(jobs)}")
    leased = [request_of(ROLLOUT, "LeasedGroup", group=one.ordinal, attempt=one.attempt) for one in groups]
    return request_of(ROLLOUT, "SettleRequest", job_id=jobs.pop(), groups=leased)


class Held:
    """The groups that a client holds: what it must not wait for."""

    def __init__(self) -> None:
        self._ends: dict[tuple[str, int], int] = {}  # end of the lease, microseconds

    def take(self, lease: Lease) -> Lease:
        self._ends.update({(group.job_id, group.ordinal): group.lease_until_us for group in lease.groups})
        return lease

    def drop(self, groups: Iterable[Group]) -> None:
        for group in groups:
            self._ends.pop((group.job_id, group.ordinal), None)

    def count(self, job_id: str) -> int:
        return sum(job == job_id and end > time.time() * 1e6 for (job, _), end in self._ends.items())


@dataclass(frozen=True)
class ExecResult:
    """How a command ended; outcome as in docs/jobs.md, e.g. EXITED."""

    outcome: str
    exit_code: int
    stdout: bytes
    stderr: bytes
    message: str
    replayed: bool


def result_of(events: Iterable[Any]) -> ExecResult:
    output = {1: bytearray(), 2: bytearray()}
    for event in events:
        if event.HasField("output"):
            output[event.output.stream] += event.output.data
        if event.HasField("result"):
            end = event.result
            name = end.DESCRIPTOR.fields_by_name["outcome"].enum_type.values_by_number[end.outcome].name
            outcome = name.removeprefix("OUTCOME_")
            return ExecResult(
                outcome, end.exit_code, bytes(output[1]), bytes(output[2]), end.message, end.replayed
            )
    raise RepriseError("DATA_LOSS", "the call's stream ended without a result")


class Client:
    """`state`: the daemons' state directory, whose sockets are used; or their addresses ("unix:/PATH")."""

    def __init__(self, state: str | Path | None = None, *, rollout: str = "", sandbox: str = "") -> None:
        addresses = addresses_of(state, rollout, sandbox)
        self._channels = [grpc.insecure_channel(address, options=OPTIONS) for address in addresses]
        self._rollout = Service(self._channels[0], ROLLOUT, "RolloutService")
        self._sandbox = Service(self._channels[1], SANDBOX, "SandboxService")
        self._held = Held()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        for channel in self._channels:
            channel.close()

    def submit(
        self, job: str | Path | Mapping[str, Any], *, job_id: str = "", directory: str | Path | None = None
    ) -> Any:
        """Submits a job file (Path), TOML text or a dict; the same content again is the same job. A Job message."""
        text, start = read_job(job, directory)
        return self._unary("Submit", "SubmitRequest", spec_toml=text, spec_dir=start, job_id=job_id)

    def job(self, job_id: str) -> Any:
        return self._unary("Get", "GetJobRequest", job_id=job_id)

    def jobs(self) -> list[Any]:
        return list(self._unary("List", "ListJobsRequest").jobs)

    def pause(self, job_id: str) -> Any:
        return self._unary("Pause", "PauseJobRequest", job_id=job_id)

    def resume(self, job_id: str) -> Any:
        return self._unary("Resume", "ResumeJobRequest", job_id=job_id)

    def cancel(self, job_id: str) -> Any:
        return self._unary("Cancel", "CancelJobRequest", job_id=job_id)

    def load_weights(
        self, directory: str | Path, *, version: int = 0, running: str = "", kv: str = "", model: str | Path = ""
    ) -> Any:
        """Puts a checkpoint in force between two steps (docs/weights.md); what is now in force, and who runs on how."""
        return self._unary("LoadWeights", "LoadWeightsRequest", **weights_fields(directory, version, running, kv, model))

    def weights(self, model: str | Path = "") -> list[Any]:
        """The weight versions of the loaded models, or of one."""
        return list(self._unary("ShowWeights", "ShowWeightsRequest", model=str(model)).versions)

    def watch(self, job_id: str) -> Iterator[Any]:
        """The job whenever it changed, until it ended."""
        with _errors():
            yield from self._rollout.Watch(request_of(ROLLOUT, "GetJobRequest", job_id=job_id))

    def records(self, job_id: str, *, follow: bool = False) -> Iterator[Record]:
        """All sealed records, without a lease; `follow` waits for the others."""
        with _errors():
            request = request_of(ROLLOUT, "ExportRequest", job_id=job_id, follow=follow)
            for exported in self._rollout.Export(request):
                yield parse_record(exported.json)

    def lease(
        self, job_id: str, *, max_groups: int = 1, lease_s: float = 600, wait_s: float = 0, in_order: bool = False
    ) -> Lease:
        """Up to `max_groups` whole groups; waits `wait_s` (at most 60) for the first."""
        with _errors():
            request = lease_request(job_id, max_groups, lease_s, wait_s, in_order)
            return self._held.take(lease_of(job_id, self._rollout.Lease(request)))

    def groups(self, job_id: str, *, lease_s: float = 600, in_order: bool = False) -> Iterator[Group]:
        """Groups one by one until the job has no more. Acknowledge each once what was made of it is saved; one that
        is not acknowledged when its lease ends comes again, also from here."""
        while True:
            lease = self.lease(job_id, lease_s=lease_s, wait_s=WAIT_S, in_order=in_order)
            if lease.ended(self._held.count(job_id)):
                return
            yield from lease.groups

    def ack(self, groups: Iterable[Group]) -> None:
        """Settles groups of one job for good, all or none. FAILED_PRECONDITION: another has one of them now."""
        if not (groups := list(groups)):
            return
        with _errors():
            self._rollout.Ack(settle_request(groups))
        self._held.drop(groups)

    def release(self, groups: Iterable[Group]) -> None:
        """Gives groups back before their leases end."""
        if not (groups := list(groups)):
            return
        with _errors():
            self._rollout.Release(settle_request(groups))
        self._held.drop(groups)

    @contextmanager
    def sandbox(self, *, tier: str = "function", image: str = "", sandbox_id: str = "") -> Iterator[Sandbox]:
        """A sandbox that is stopped at the end of the block."""
        with _errors():
            made = self._sandbox.Create(create_request(tier, image, sandbox_id))
        box = Sandbox(self._sandbox, made.sandbox.id)
        try:
            yield box
        finally:
            with _errors():
                self._sandbox.Stop(request_of(SANDBOX, "StopRequest", sandbox_id=box.id))

    def _unary(self, method: str, request: str, **fields: Any) -> Any:
        with _errors():
            return getattr(self._rollout, method)(request_of(ROLLOUT, request, **fields))


class Sandbox:
    def __init__(self, service: Any, sandbox_id: str) -> None:
        self._service = service
        self.id = sandbox_id

    def exec(self, *argv: str, stdin: bytes = b"", call_id: str = "", timeout_s: float = 0) -> ExecResult:
        """Runs one command; the same `call_id` again answers from the journal."""
        with _errors():
            request = execute_request(self.id, argv, stdin, call_id, timeout_s)
            return result_of(self._service.Execute(request))


def addresses_of(state: str | Path | None, rollout: str, sandbox: str) -> tuple[str, str]:
    if state is None and not (rollout or sandbox):
        raise ValueError("give the state directory of the daemons, or their addresses")
    base = Path(state or ".").resolve()
    return rollout or f"unix:{base}/rolloutd.sock", sandbox or f"unix:{base}/sandboxd.sock"


def create_request(tier: str, image: str, sandbox_id: str) -> Any:
    spec = request_of(SANDBOX, "SandboxSpec", tier=f"TIER_{tier.upper()}", image=image)
    return request_of(SANDBOX, "CreateRequest", sandbox_id=sandbox_id, spec=spec)


def execute_request(sandbox_id: str, argv: tuple[str, ...], stdin: bytes, call_id: str, timeout_s: float) -> Any:
    limits = request_of(SANDBOX, "Limits", timeout_ms=round(timeout_s * 1000))
    return request_of(
        SANDBOX, "ExecuteRequest", sandbox_id=sandbox_id, argv=argv, stdin=stdin, call_id=call_id, limits=limits
    )


@contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as error:
        raise error_of(error) from None
