"""The client of client.py for asyncio: the same verbs, awaited."""

from __future__ import annotations

from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, AsyncIterator, Iterable, Mapping

import grpc
import grpc.aio

from reprise._wire import OPTIONS, ROLLOUT, SANDBOX, Service
from reprise.client import (
    WAIT_S,
    ExecResult,
    Held,
    _errors,
    addresses_of,
    create_request,
    execute_request,
    lease_request,
    request_of,
    result_of,
    settle_request,
    weights_fields,
)
from reprise.job import read_job
from reprise.records import Group, Lease, Record, lease_of, parse_record


class AsyncClient:
    """Made inside a running event loop; arguments as of Client."""

    def __init__(self, state: str | Path | None = None, *, rollout: str = "", sandbox: str = "") -> None:
        addresses = addresses_of(state, rollout, sandbox)
        self._channels = [grpc.aio.insecure_channel(address, options=OPTIONS) for address in addresses]
        self._rollout = Service(self._channels[0], ROLLOUT, "RolloutService")
        self._sandbox = Service(self._channels[1], SANDBOX, "SandboxService")
        self._held = Held()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()

    async def submit(
        self, job: str | Path | Mapping[str, Any], *, job_id: str = "", directory: str | Path | None = None
    ) -> Any:
        text, start = read_job(job, directory)
        return await self._unary("Submit", "SubmitRequest", spec_toml=text, spec_dir=start, job_id=job_id)

    async def job(self, job_id: str) -> Any:
        return await self._unary("Get", "GetJobRequest", job_id=job_id)

    async def load_weights(
        self, directory: str | Path, *, version: int = 0, running: str = "", kv: str = "", model: str | Path = ""
    ) -> Any:
        fields = weights_fields(directory, version, running, kv, model)
        return await self._unary("LoadWeights", "LoadWeightsRequest", **fields)

    async def weights(self, model: str | Path = "") -> list[Any]:
        return list((await self._unary("ShowWeights", "ShowWeightsRequest", model=str(model))).versions)

    async def pause(self, job_id: str) -> Any:
        return await self._unary("Pause", "PauseJobRequest", job_id=job_id)

    async def resume(self, job_id: str) -> Any:
        return await self._unary("Resume", "ResumeJobRequest", job_id=job_id)

    async def cancel(self, job_id: str) -> Any:
        return await self._unary("Cancel", "CancelJobRequest", job_id=job_id)

    async def watch(self, job_id: str) -> AsyncIterator[Any]:
        with _errors():
            async for job in self._rollout.Watch(request_of(ROLLOUT, "GetJobRequest", job_id=job_id)):
                yield job

    async def records(self, job_id: str, *, follow: bool = False) -> AsyncIterator[Record]:
        with _errors():
            request = request_of(ROLLOUT, "ExportRequest", job_id=job_id, follow=follow)
            async for exported in self._rollout.Export(request):
                yield parse_record(exported.json)

    async def lease(
        self, job_id: str, *, max_groups: int = 1, lease_s: float = 600, wait_s: float = 0, in_order: bool = False
    ) -> Lease:
        with _errors():
            request = lease_request(job_id, max_groups, lease_s, wait_s, in_order)
            answers = [answer async for answer in self._rollout.Lease(request)]
        return self._held.take(lease_of(job_id, answers))

    async def groups(self, job_id: str, *, lease_s: float = 600, in_order: bool = False) -> AsyncIterator[Group]:
        while True:
            lease = await self.lease(job_id, lease_s=lease_s, wait_s=WAIT_S, in_order=in_order)
            if lease.ended(self._held.count(job_id)):
                return
            for group in lease.groups:
                yield group

    async def ack(self, groups: Iterable[Group]) -> None:
        if not (groups := list(groups)):
            return
        with _errors():
            await self._rollout.Ack(settle_request(groups))
        self._held.drop(groups)

    async def release(self, groups: Iterable[Group]) -> None:
        if not (groups := list(groups)):
            return
        with _errors():
            await self._rollout.Release(settle_request(groups))
        self._held.drop(groups)

    @asynccontextmanager
    async def sandbox(
        self, *, tier: str = "function", image: str = "", sandbox_id: str = ""
    ) -> AsyncIterator[AsyncSandbox]:
        with _errors():
            made = await self._sandbox.Create(create_request(tier, image, sandbox_id))
        box = AsyncSandbox(self._sandbox, made.sandbox.id)
        try:
            yield box
        finally:
            with _errors():
                await self._sandbox.Stop(request_of(SANDBOX, "StopRequest", sandbox_id=box.id))

    async def _unary(self, method: str, request: str, **fields: Any) -> Any:
        with _errors():
            return await getattr(self._rollout, method)(request_of(ROLLOUT, request, **fields))


class AsyncSandbox:
    def __init__(self, service: Any, sandbox_id: str) -> None:
        self._service = service
        self.id = sandbox_id

    async def exec(self, *argv: str, stdin: bytes = b"", call_id: str = "", timeout_s: float = 0) -> ExecResult:
        request = execute_request(self.id, argv, stdin, call_id, timeout_s)
        with _errors():
            return result_of([event async for event in self._service.Execute(request)])
