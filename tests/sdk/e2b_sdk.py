"""E2B's Python SDK, unmodified: only its environment variables point here."""

import asyncio
import os
import sys
import time

from harness import Checks, served


def equal(a, b):
    assert a == b, f"{a!r} is not {b!r}"


# Reads what a terminal shows until `text` is there; `events` goes on where it was.
def until(events, shown, text):
    for _, _, data in events:
        if data:
            shown.append(data)
        if text in b"".join(shown):
            return
    raise AssertionError(f"{text} was not shown: {shown}")


def commands(check, box, tier):
    from e2b import CommandExitException, PtySize, TimeoutException
    def run():
        lines = []
        done = box.commands.run("echo out; echo err >&2; echo $A", envs={"A": "1"}, on_stdout=lines.append)
        equal((done.stdout, done.stderr, done.exit_code), ("out\n1\n", "err\n", 0))
        equal("".join(lines), "out\n1\n")
    def fails():
        try:
            box.commands.run("echo no; exit 7")
        except CommandExitException as error:
            equal((error.exit_code, error.stdout), (7, "no\n"))
        else:
            raise AssertionError("exit 7 went unnoticed")
    def times_out():
        try:
            box.commands.run("sleep 600", timeout=1)
        except Exception as error:  # SDKs of 2025 let that of their transport through, when it is first
            assert isinstance(error, TimeoutException) or type(error).__name__ == "ReadTimeout", error
            return
        raise AssertionError("the time limit went unnoticed")
    def background():
        handle = box.commands.run("sleep 600", background=True)
        assert handle.pid in [process.pid for process in box.commands.list()]
        again = box.commands.connect(handle.pid)
        assert handle.kill()
        for waiting in (handle, again):
            try:
                waiting.wait()
            except CommandExitException as error:
                equal(error.exit_code, -1)
        assert not box.commands.kill(handle.pid)
    def stdin():
        handle = box.commands.run("cat", background=True, stdin=True)
        box.commands.send_stdin(handle.pid, "typed")
        if hasattr(box.commands, "close_stdin"):
            box.commands.close_stdin(handle.pid)
        else:
            next(out for out, _, _ in handle if out)
            handle.kill()
        try:
            equal(handle.wait().stdout, "typed")
        except CommandExitException as error:
            equal(error.stdout, "typed")
    def terminal():
        shown = []
        pty = box.pty.create(PtySize(rows=30, cols=100), timeout=60, envs={"PS1": "$ "})
        events = iter(pty)
        box.pty.send_stdin(pty.pid, b"stty size\n")
        until(events, shown, b"30 100")
        box.pty.resize(pty.pid, PtySize(rows=40, cols=120))
        box.pty.send_stdin(pty.pid, b"stty size\n")
        until(events, shown, b"40 120")
        if hasattr(box.pty, "connect"):
            pty.disconnect()
            pty = box.pty.connect(pty.pid)
            until(iter(pty), [], b"40 120")
        assert box.pty.kill(pty.pid)
        try:
            pty.wait()
        except CommandExitException as error:
            equal(error.exit_code, -1)
        assert not box.pty.kill(pty.pid)
    for work in (run, fails, times_out, background, stdin, terminal):
        check(f"{tier}: commands, {work.__name__}", work)


def files(check, box):
    from e2b import FilesystemEventType, FileType
    def write_read():
        box.files.write("a.txt", "hello")
        equal(box.files.read("a.txt"), "hello")
        box.files.write("/tmp/bytes", b"\0\1\2" * 100000)
        equal(bytes(box.files.read("/tmp/bytes", format="bytes")), b"\0\1\2" * 100000)
        equal(b"".join(box.files.read("/tmp/bytes", format="stream")), b"\0\1\2" * 100000)
    def many():
        box.files.write_files([{"path": "/tmp/m/1", "data": "1"}, {"path": "/tmp/m/2", "data": "2"}])
        equal([entry.name for entry in box.files.list("/tmp/m")], ["1", "2"])
    def directories():
        assert box.files.make_dir("/tmp/d")
        assert not box.files.make_dir("/tmp/d")
        assert box.files.exists("/tmp/d") and not box.files.exists("/tmp/none")
        equal(box.files.list("/tmp/d"), [])
        box.files.write("/tmp/d/x", "1")
        equal(box.files.rename("/tmp/d/x", "/tmp/d/y").path, "/tmp/d/y")
        equal(box.files.get_info("/tmp/d").type, FileType.DIR)
        box.files.remove("/tmp/d")
        assert not box.files.exists("/tmp/d")
    def missing():
        from e2b import NotFoundException
        try:
            box.files.read("/tmp/none")
        except NotFoundException:
            return
        raise AssertionError("a missing file was read")
    def signed_url():
        import urllib.request
        box.files.write("/tmp/signed", "by url")
        equal(urllib.request.urlopen(box.download_url("/tmp/signed")).read(), b"by url")
    def watch_polled():
        box.files.make_dir("/tmp/watched/sub")
        handle = box.files.watch_dir("/tmp/watched", recursive=True)
        box.files.write("/tmp/watched/sub/f", "1")
        box.files.remove("/tmp/watched/sub/f")
        seen = []
        deadline = time.monotonic() + 60
        while ("sub/f", FilesystemEventType.REMOVE) not in seen and time.monotonic() < deadline:
            seen += [(event.name, event.type) for event in handle.get_new_events()]
        kinds = [FilesystemEventType.CREATE, FilesystemEventType.WRITE, FilesystemEventType.REMOVE]
        equal([event for event in seen if event[1] in kinds], [("sub/f", kind) for kind in kinds])
        handle.stop()
    def watch_streamed():
        async def run():
            from e2b import AsyncSandbox
            other = await AsyncSandbox.connect(box.sandbox_id)
            seen, enough = [], asyncio.Event()
            def take(event):
                seen.append((event.name, event.type))
                if seen[-1] == ("g", FilesystemEventType.REMOVE):
                    enough.set()
            handle = await other.files.watch_dir("/tmp/watched", on_event=take)
            await other.files.write("/tmp/watched/g", "1")
            await other.files.remove("/tmp/watched/g")
            await asyncio.wait_for(enough.wait(), 60)
            equal(seen[0], ("g", FilesystemEventType.CREATE))
            await handle.stop()
        asyncio.run(run())
    for work in (write_read, many, directories, missing, signed_url, watch_polled, watch_streamed):
        check(f"container: files, {work.__name__}", work)


def snapshots(check, box):
    from e2b import Sandbox
    def snapshot():
        box.files.write("/tmp/kept", "1")
        taken = box.create_snapshot()
        box.files.write("/tmp/kept", "2")
        other = Sandbox.create(taken.snapshot_id, timeout=600)
        equal(other.files.read("/tmp/kept"), "1")
        other.kill()
    def listed():
        taken = box.create_snapshot()
        pages = box.list_snapshots()
        ids = []
        while pages.has_next:
            ids += [item.snapshot_id for item in pages.next_items()]
        assert taken.snapshot_id in ids, ids
    def deleted():
        own = Sandbox.create("base", timeout=600)
        taken = own.create_snapshot()
        own.kill()
        assert Sandbox.delete_snapshot(taken.snapshot_id)
        assert not Sandbox.delete_snapshot(taken.snapshot_id)
    def fork():
        box.files.write("/tmp/forked", "before")
        forks = box.fork(count=2)
        equal([other.files.read("/tmp/forked") for other in forks], ["before", "before"])
        for other in forks:
            other.files.write("/tmp/forked", "after")
            other.kill()
        equal(box.files.read("/tmp/forked"), "before")
    for work, needs in ((snapshot, "create_snapshot"), (listed, "list_snapshots"), (deleted, "delete_snapshot"),
                        (fork, "fork")):
        if hasattr(box, needs):
            check(f"container: snapshots, {work.__name__}", work)
        else:
            check.absent(f"container: snapshots, {work.__name__}")


def templates(check):
    import tempfile
    try:
        from e2b import Sandbox, Template, default_build_logger  # noqa: F401
    except ImportError:
        return check.absent("container: templates, build")
    def build():
        with tempfile.TemporaryDirectory() as context:
            with open(os.path.join(context, "a.txt"), "w") as file:
                file.write("copied")
            template = (Template(file_context_path=context).from_image("base").set_workdir("/app")
                        .copy("a.txt", "/app/").set_envs({"A": "1"}).run_cmd("echo $A > /app/ran"))
            lines = []
            Template.build(template, alias="sdk-template", on_build_logs=lambda entry: lines.append(entry.message))
            box = Sandbox.create("sdk-template", timeout=600)
            equal(box.commands.run("cat /app/a.txt /app/ran; echo $A").stdout, "copied1\n1\n")
            box.kill()
            again = []
            Template.build(template, alias="sdk-template", on_build_logs=lambda entry: again.append(entry.message))
            assert any("CACHED" in line and "RUN" in line for line in again), again
    def fails():
        from e2b import BuildException
        try:
            Template.build(Template().from_image("base").run_cmd("exit 3"), alias="sdk-broken")
        except BuildException as error:
            assert "exit status 3" in str(error), error
        else:
            raise AssertionError("a step that fails went unnoticed")
    for work in (build, fails):
        check(f"container: templates, {work.__name__}", work)


def lifecycle(check, box, pausable):
    from e2b import Sandbox
    def info():
        found = box.get_info()
        equal((found.sandbox_id, found.metadata.get("run")), (box.sandbox_id, "sdk"))
        assert box.is_running()
    def listed():
        from e2b import SandboxQuery
        pages = Sandbox.list(query=SandboxQuery(metadata={"run": "sdk"}), limit=1)
        ids = []
        while pages.has_next:
            ids += [item.sandbox_id for item in pages.next_items()]
        assert box.sandbox_id in ids
    def timeout():
        before = box.get_info().end_at
        box.set_timeout(3600)
        assert box.get_info().end_at > before
    def connect():
        equal(Sandbox.connect(box.sandbox_id).commands.run("echo again").stdout, "again\n")
    def metrics():
        assert len(box.get_metrics()) <= 1
    def pause():
        box.pause() if hasattr(box, "pause") else box.beta_pause()
        back = Sandbox.connect(box.sandbox_id)
        equal(back.commands.run("echo awake").stdout, "awake\n")
    def kill():
        assert box.kill()
        assert not box.is_running()
        assert not Sandbox.kill(box.sandbox_id)
    for work in (info, listed, timeout, connect, metrics) + ((pause,) if pausable else ()) + (kill,):
        check(f"lifecycle, {work.__name__}", work)


def main():
    check = Checks("e2b")
    with served(sys.argv[1]) as (daemon, template):
        os.environ.update(E2B_API_URL=daemon.url, E2B_SANDBOX_URL=daemon.url, E2B_API_KEY=daemon.token)
        from e2b import Sandbox
        if daemon.function_tier():
            box = Sandbox.create("any@function", timeout=600, metadata={"run": "sdk"})
            commands(check, box, "function")
            lifecycle(check, box, pausable=False)
        else:
            print("skipped the function tier: it is not usable on this host")
        if template:
            box = Sandbox.create(template, timeout=600, metadata={"run": "sdk"})
            commands(check, box, "container")
            files(check, box)
            snapshots(check, box)
            templates(check)
            lifecycle(check, box, pausable=True)
    return check.end()


if __name__ == "__main__":
    sys.exit(main())
