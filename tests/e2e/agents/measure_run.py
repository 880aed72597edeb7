"""What it takes until an agent begins on 500 MB in 20,000 files of which one changed, beside rsync and tar. No test: run by hand with

    WARREN_BIN=target/release/warren tests/e2e/.venv/bin/python -m pytest agents/measure_run.py -s

from tests/e2e.
"""

import random
import shutil
import statistics
import subprocess
import time

from harness import settings
from harness.agent_runs import Folder

from .run_fixtures import _own_server, server  # noqa: F401

FILES, BYTES, ROUNDS = 20_000, 500 << 20, 7


def test_second_run_after_one_file_changed(server, tmp_path):
    folder = Folder(tmp_path / "tree", server)
    block = random.Random(1).randbytes(1 << 20)
    size = BYTES // FILES
    for number in range(FILES):
        start = random.randrange(len(block) - size)
        folder.put({f"d{number // 200:03}/f{number:05}": block[start : start + size]})
    # Times that were set within two seconds of sending tell nothing.
    time.sleep(2.5)
    begun = time.monotonic()
    folder.run("true", within=600)
    print(f"\nfirst run, everything sent: {time.monotonic() - begun:.1f} s")
    report("warren agent run, until the agent begins", folder, lambda: folder.events("true")["started"]["ms"] / 1000)
    copy, archive = tmp_path / "copy", tmp_path / "all.tar"
    if shutil.which("rsync"):
        sync = ["rsync", "-a", "--delete", f"{folder.path}/", f"{copy}/"]
        subprocess.run(sync, check=True)
        report("rsync -a --delete to a folder beside it", folder, lambda: timed(sync))
    report("tar c to a file beside it", folder, lambda: timed(["tar", "cf", archive, "-C", folder.path, "."]))


def timed(command):
    begun = time.monotonic()
    subprocess.run(command, check=True)
    return time.monotonic() - begun


def report(what, folder, measured):
    times = []
    for round_ in range(ROUNDS):
        folder.put({"d050/f10000": f"{round_} {random.random()}"})
        times.append(measured())
    print(f"{what}: median {statistics.median(times):.3f} s, most {max(times):.3f} s")
    assert settings.PROGRAM
