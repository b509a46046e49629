"""Makes docs/compatibility.md of what the SDK scripts found: matrix.py RESULTS FILE."""

import json
import sys

HEAD = """# Compatibility

Published clients, unmodified, against this tree: what each version does. Made by `tests/sdk/run --write`; do not edit.
"""


def main(results, target):
    with open(results) as file:
        runs = [json.loads(line) for line in file]
    text = HEAD
    for package in dict.fromkeys(run["package"] for run in runs):
        versions = {run["version"]: dict(run["results"]) for run in runs if run["package"] == package}
        names = dict.fromkeys(name for results in versions.values() for name in results)
        text += f"\n## {package}\n\n| | {' | '.join(versions)} |\n|{'---|' * (len(versions) + 1)}\n"
        for name in names:
            text += f"| {name} | {' | '.join(results.get(name, 'not run') for results in versions.values())} |\n"
    with open(target, "w") as file:
        file.write(text)


if __name__ == "__main__":
    main(*sys.argv[1:])
