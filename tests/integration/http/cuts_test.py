"""Connections cut at random in the middle of streams, clients that try again with their keys, and a sandboxd that is killed
meanwhile: each command's effect is there once, and all of its output arrives."""

import http.client
import random
import sys
import threading
import unittest

from connect import ConnectError, Envd
from container_case import ContainerCase

CLIENTS = 4
COMMANDS = 6  # of each client
KILLS = 3
LINES = 300  # that a command writes
SEED = 7


class Cuts(ContainerCase):
    # One command, until its end was seen: its output, and how often it was cut off.
    def run_to_the_end(self, made, name, dice):
        script = (f"echo {name} >> /work/effects; i=0; while [ $i -lt {LINES} ]; do echo {name} $i; i=$((i + 1)); "
                  "[ $((i % 100)) -ne 0 ] || sleep 0.1; done")
        cuts = 0
        while not self.failed.is_set():
            stream = None
            try:
                envd = Envd(self.daemon, made["sandboxID"], made["envdAccessToken"])
                stream = envd.start("sh", "-c", script, **{"Idempotency-Key": name})
                cut_at = dice.randrange(2 * LINES * len(name)) if cuts < 3 else None
                while cut_at is None or len(stream.out) < cut_at:
                    if stream.event() is None:
                        self.assertEqual(stream.end["exitCode"], 0)
                        return stream.out.decode(), cuts
                cuts += 1
            except ConnectError as error:
                self.assertIn(error.code, ("unavailable", "canceled"), error)
            except (OSError, EOFError, ValueError, http.client.HTTPException):
                pass  # cut off by the other side
            finally:
                if stream is not None:
                    stream.close()
        return "", cuts

    def test_effects_are_there_once_and_output_is_whole(self):
        made = self.daemon.request("POST", "/v2/sandboxes", {"templateID": "base", "timeout": 3600}).json()
        self.failed = threading.Event()
        outputs, cuts, errors = {}, [], []

        def client(number):
            dice = random.Random(SEED + number)
            try:
                for command in range(COMMANDS):
                    name = f"client-{number}-command-{command}"
                    outputs[name], cut = self.run_to_the_end(made, name, dice)
                    cuts.append(cut)
            except BaseException as error:
                errors.append(error)
                self.failed.set()

        clients = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
        for each in clients:
            each.start()
        for kill in range(KILLS):
            # After so many commands have ended, wherever the others are.
            while len(outputs) < (kill + 1) * CLIENTS and any(each.is_alive() for each in clients):
                clients[0].join(timeout=0.05)
            self.daemon.restart(kill=True)
        for each in clients:
            each.join(timeout=120)
        self.assertFalse(errors, errors)
        self.assertEqual(len(outputs), CLIENTS * COMMANDS)
        for name, text in outputs.items():
            self.assertEqual(text, "".join(f"{name} {line}\n" for line in range(LINES)))
        self.assertGreater(sum(cuts), CLIENTS)
        envd = Envd(self.daemon, made["sandboxID"], made["envdAccessToken"])
        self.assertEqual(sorted(envd.run("cat", "/work/effects").out.decode().split()), sorted(outputs))


if __name__ == "__main__":
    ContainerCase.bin_dir = sys.argv.pop(1)
    unittest.main()
