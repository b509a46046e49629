"""Groups come whole, with the bytes of the export, again until they are acknowledged, and never after."""

from __future__ import annotations

import asyncio

import pytest

from reprise import AsyncClient, Client, RepriseError

from conftest import Daemons


def wait(client: Client, job_id: str) -> None:
    *_, last = client.watch(job_id)
    assert last.state == "completed"


def test_a_killed_daemon_forgets_no_lease_and_no_acknowledgement(daemons: Daemons) -> None:
    with Client(daemons.state) as client:
        client.submit(daemons.job("kept"))
        wait(client, "kept")
        exported = [record.text for record in client.records("kept")]
        first, second = client.lease("kept", max_groups=2).groups
        assert [one.text for group in (first, second) for one in group.records] == exported[:4]
        client.ack([first])
    daemons.end(kill=True)
    daemons.start()
    with Client(daemons.state) as client:
        rest = client.lease("kept", max_groups=9)
        assert [group.ordinal for group in rest.groups] == [2, 3]
        assert (rest.leased, rest.acknowledged) == (3, 1)
        client.release([second])
        again = client.lease("kept", max_groups=9).groups
        assert [one.text for one in again[0].records] == exported[2:4]
        with pytest.raises(RepriseError) as late:
            client.ack([second])
        assert late.value.code == "FAILED_PRECONDITION"
        client.ack([*again, *rest.groups])
        assert client.lease("kept").acknowledged == 4


def test_every_group_of_a_killed_job_comes_once(daemons: Daemons) -> None:
    with Client(daemons.state) as client:
        client.submit(daemons.job("cut", limit=6, group_size=128, limits={"max_tokens": 24, "max_in_flight": 2}))
        for job in client.watch("cut"):
            if job.sampled_tokens > 50:
                break
        assert job.sampled_tokens > 50 and job.state == "running"
    daemons.end(kill=True)
    daemons.start()
    with Client(daemons.state) as client:
        taken = {}
        for group in client.groups("cut", in_order=True):
            assert group.ordinal not in taken
            taken[group.ordinal] = group
            client.ack([group])
        assert list(taken) == list(range(6))
        exported = [record.text for record in client.records("cut")]
        assert [one.text for group in taken.values() for one in group.records] == exported


def test_asyncio(daemons: Daemons) -> None:
    async def run() -> list[int]:
        async with AsyncClient(daemons.state) as client:
            await client.submit(daemons.job("async"))
            seen = []
            async for group in client.groups("async", in_order=True):
                seen.append(group.ordinal)
                await client.ack([group])
            states = [job.state async for job in client.watch("async")]
            assert states[-1] == "completed"
            assert [record.id async for record in client.records("async")][0] == "async/000000/0"
            async with client.sandbox() as box:
                assert (await box.exec("cat", stdin=b"in")).stdout == b"in"
            return seen

    assert asyncio.run(run()) == [0, 1, 2, 3]


def test_what_cannot_be_is_one_line(daemons: Daemons) -> None:
    with Client(daemons.state) as client:
        with pytest.raises(RepriseError, match="NOT_FOUND: job \"nobody\" is not known here"):
            client.lease("nobody")
        with pytest.raises(RepriseError, match="INVALID_ARGUMENT: .*unknown"):
            client.submit(daemons.job("bad", unknown_key=1))
