"""Packs the descriptors of the daemons' protocol (proto/ at the root of the tree) into the wheel."""

from __future__ import annotations

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
PROTO = HERE.parent.parent / "proto"
FILES = ["reprise/sandbox/v1/sandbox.proto", "reprise/rollout/v1/rollout.proto"]


class BuildWithDescriptors(build_py):
    def run(self) -> None:
        from grpc_tools import protoc

        super().run()
        out = Path(self.build_lib) / "reprise" / "protos.binpb"
        if protoc.main(["protoc", f"-I{PROTO}", "--include_imports", f"--descriptor_set_out={out}", *FILES]) != 0:
            raise SystemExit(f"protoc refused {PROTO}: build the package from a checkout of the whole tree")


setup(cmdclass={"build_py": BuildWithDescriptors})
