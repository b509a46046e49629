"""SWE-ReX's RemoteRuntime, unmodified: only its host, port and token point here."""

import asyncio
import os
import sys
import tempfile

from harness import Checks, served


def equal(a, b):
    assert a == b, f"{a!r} is not {b!r}"


def main():
    from swerex.exceptions import CommandTimeoutError, NonZeroExitCodeError
    from swerex.runtime.abstract import (BashAction, BashInterruptAction, CloseBashSessionRequest, Command,
                                         CreateBashSessionRequest, ReadFileRequest, UploadRequest, WriteFileRequest)
    from swerex.runtime.remote import RemoteRuntime

    check = Checks("swe-rex")
    with served(sys.argv[1]) as (daemon, template):
        made = daemon.request("POST", "/v2/sandboxes", {"templateID": template or "any@function"}).json()
        host, port = daemon.address
        runtime = RemoteRuntime(host=f"http://{host}", port=port,
                                auth_token=f"{made['sandboxID']}.{made['envdAccessToken']}")

        def wait(coroutine):
            return asyncio.run(coroutine)

        def raises(kind, coroutine):
            try:
                wait(coroutine)
            except kind:
                return
            raise AssertionError(f"no {kind.__name__}")

        def alive():
            assert wait(runtime.is_alive())
            by_path = RemoteRuntime(host=f"{daemon.url}/swerex/{made['sandboxID']}", port=None, auth_token=daemon.token)
            assert wait(by_path.is_alive())
            assert not wait(RemoteRuntime(host=f"http://{host}", port=port, auth_token="no").is_alive())

        def execute():
            done = wait(runtime.execute(Command(command=["echo", "hi"])))
            equal((done.stdout, done.exit_code), ("hi\n", 0))
            raises(NonZeroExitCodeError, runtime.execute(Command(command="exit 2", shell=True, check=True)))
            raises(CommandTimeoutError, runtime.execute(Command(command=["sleep", "600"], timeout=0.3)))

        def session():
            wait(runtime.create_session(CreateBashSessionRequest()))
            wait(runtime.run_in_session(BashAction(command="cd /tmp && x=1")))
            equal(wait(runtime.run_in_session(BashAction(command="pwd; echo $x"))).output, "/tmp\n1\n")
            raises(NonZeroExitCodeError, runtime.run_in_session(BashAction(command="false")))
            raises(CommandTimeoutError, runtime.run_in_session(BashAction(command="sleep 600", timeout=0.3)))
            wait(runtime.run_in_session(BashInterruptAction()))
            equal(wait(runtime.run_in_session(BashAction(command="echo $x"))).output, "1\n")
            wait(runtime.close_session(CloseBashSessionRequest()))

        def files():
            wait(runtime.write_file(WriteFileRequest(path="/tmp/w/f", content="text")))
            equal(wait(runtime.read_file(ReadFileRequest(path="/tmp/w/f"))).content, "text")
            raises(FileNotFoundError, runtime.read_file(ReadFileRequest(path="/tmp/none")))
            with tempfile.TemporaryDirectory() as directory:
                with open(os.path.join(directory, "a"), "w") as file:
                    file.write("uploaded")
                wait(runtime.upload(UploadRequest(source_path=os.path.join(directory, "a"), target_path="/tmp/u/a")))
                equal(wait(runtime.read_file(ReadFileRequest(path="/tmp/u/a"))).content, "uploaded")
                wait(runtime.upload(UploadRequest(source_path=directory, target_path="/tmp/dir")))
                equal(wait(runtime.read_file(ReadFileRequest(path="/tmp/dir/a"))).content, "uploaded")

        def close():
            wait(runtime.close())

        for work in (alive, execute) + ((session, files) if template else ()) + (close,):
            check(work.__name__, work)
    return check.end()


if __name__ == "__main__":
    sys.exit(main())
