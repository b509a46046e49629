"""What tests over HTTP on the container tier begin with: a containerd, a sandboxd, and the image "base"."""

import unittest

import containers
from daemon import Daemon


class ContainerCase(unittest.TestCase):
    bin_dir = None

    @classmethod
    def setUpClass(cls):
        if reason := containers.why_not():
            raise unittest.SkipTest(reason)
        cls.containerd = containers.Containerd()
        cls.daemon = Daemon(cls.bin_dir, "--containerd", cls.containerd.address)
        cls.daemon.import_image("base", cls.containerd.root)

    @classmethod
    def tearDownClass(cls):
        for box in cls.daemon.request("GET", "/sandboxes").json():
            cls.daemon.request("DELETE", f"/sandboxes/{box['sandboxID']}")
        code = cls.daemon.close()
        cls.containerd.close()
        assert code == 0
