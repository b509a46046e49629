"""Runs these tests against the package of a build tree: run.py PACKAGE_PARENT --bin DIR --source DIR; 77 = skipped."""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> int:
    try:
        import google.protobuf  # noqa: F401
        import grpc  # noqa: F401
        import numpy  # noqa: F401
        import pytest
    except ImportError as missing:
        print(f"skipped: {missing}; the Python client needs grpcio, protobuf, numpy, and its tests pytest")
        return 77
    sys.path.insert(0, sys.argv[1])
    here = str(Path(__file__).parent)
    return int(pytest.main(["-q", "-p", "no:cacheprovider", "--rootdir", here, here, *sys.argv[2:]]))


if __name__ == "__main__":
    sys.exit(main())
