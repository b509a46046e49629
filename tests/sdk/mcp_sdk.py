"""The published mcp client, unmodified, against sandboxd's /mcp."""

import asyncio
import sys

from harness import Checks, served


async def connected(daemon, work):
    import contextlib

    from mcp import ClientSession
    try:
        from mcp.client.streamable_http import streamable_http_client as open_stream
        import httpx2 as httpx
        arguments = {"http_client": httpx.AsyncClient(headers={"Authorization": f"Bearer {daemon.token}"}, timeout=60)}
    except ImportError:  # before version 2
        from mcp.client.streamable_http import streamablehttp_client as open_stream
        arguments = {"headers": {"Authorization": f"Bearer {daemon.token}"}}
    async with contextlib.AsyncExitStack() as stack:
        streams = await stack.enter_async_context(open_stream(daemon.url + "/mcp", **arguments))
        session = await stack.enter_async_context(ClientSession(streams[0], streams[1]))
        initialized = await session.initialize()
        return await work(session, initialized)


# A field of a result under its Python or its wire name.
def field(value, name, wire):
    return getattr(value, name) if hasattr(value, name) else getattr(value, wire)


def main():
    check = Checks("mcp")
    with served(sys.argv[1]) as (daemon, template):
        def run(work):
            return asyncio.run(connected(daemon, work))

        async def tool(session, name, **arguments):
            result = await session.call_tool(name, arguments)
            assert not field(result, "is_error", "isError"), result
            return field(result, "structured_content", "structuredContent")

        def initialize():
            async def work(session, initialized):
                assert field(initialized, "server_info", "serverInfo").name == "reprise-sandboxd"
                names = [tool.name for tool in (await session.list_tools()).tools]
                assert "run_command" in names, names
            run(work)

        def commands():
            async def work(session, _):
                box = (await tool(session, "create_sandbox", **({"tier": "container", "image": template} if template
                                                                else {"tier": "function"})))["sandbox"]
                done = await tool(session, "run_command", sandbox=box, command="echo hi; exit 4")
                assert (done["stdout"], done["exit_code"]) == ("hi\n", 4), done
                if template:
                    await tool(session, "write_file", sandbox=box, path="a", content="text")
                    assert (await tool(session, "read_file", sandbox=box, path="a"))["content"] == "text"
                    listed = await tool(session, "list_dir", sandbox=box, path=".")
                    assert [entry["name"] for entry in listed["entries"]] == ["a"], listed
                failed = await session.call_tool("run_command", {"sandbox": "none", "command": "true"})
                assert field(failed, "is_error", "isError") and "does not exist" in failed.content[0].text
                await tool(session, "stop_sandbox", sandbox=box)
            run(work)

        if not template and not daemon.function_tier():
            print("skipped: no tier is usable on this host")
            return 0
        check("mcp: initialize and tools", initialize)
        check("mcp: sandboxes, commands, files", commands)
    return check.end()


if __name__ == "__main__":
    sys.exit(main())
