"""What tests on the function tier begin with: a sandboxd of their own, skipped where the host lacks the tier."""

import unittest

from daemon import Daemon


class FunctionCase(unittest.TestCase):
    bin_dir = None
    flags = ("--containerd", "")

    @classmethod
    def setUpClass(cls):
        cls.daemon = Daemon(cls.bin_dir, *cls.flags)
        if not cls.daemon.function_tier():
            cls.daemon.close()
            raise unittest.SkipTest("the function tier is not usable on this host")

    @classmethod
    def tearDownClass(cls):
        assert cls.daemon.close() == 0
