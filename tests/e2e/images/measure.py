"""Figures of images, for `bench/run --only images`: one JSON array of lines on standard output.

    WARREN_BIN=… python -m images.measure [--quick]

A registry and a server of its own. The image is made of files of this machine, in five layers that are new each round, so that
nothing is there already.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from harness import oci, registry, rootfs
from harness.builds import Snapshot, create, manifest, run
from harness.server import Server

IMPORT = "import of an image of {} MB from a registry"
DISK = "disk of ten snapshots with a common base"
CACHE = "page cache of ten sandboxes of ten snapshots"
SOURCES = ("/usr/lib", "/usr/share")


def line(figure, system, unit, values, *notes, limit=None):
    return {"figure": figure, "system": system, "unit": unit, "values": values, "notes": list(notes), "limit": limit}


def gather(wanted):
    """Files of this machine, as many bytes as wanted, in five parts."""
    parts, sizes = [[] for _ in range(5)], [0] * 5
    for source in SOURCES:
        for folder, folders, names in os.walk(source):
            folders.sort()
            for name in sorted(names):
                path = Path(folder, name)
                if path.is_symlink() or not path.is_file() or not 0 < path.stat().st_size < 40_000_000:
                    continue
                part = sizes.index(min(sizes))
                parts[part].append(path)
                sizes[part] += path.stat().st_size
                if sum(sizes) >= wanted:
                    return parts, sum(sizes)
    return parts, sum(sizes)


def make(parts):
    """An image of these files whose layers are all new."""

    def layer(files):
        entries = [oci.entry(f"own/{uuid.uuid4()}", uuid.uuid4().hex)]
        entries += [oci.entry(f"content{path}", path.read_bytes(), mode=path.stat().st_mode & 0o777) for path in files]
        return oci.Layer(entries)

    with ThreadPoolExecutor(2) as pool:
        return oci.Image(rootfs.layer(), *pool.map(layer, parts))


def imports(api, store, options):
    parts, size = gather(100_000_000 if options.quick else 300_000_000)
    figure = IMPORT.format(round(size / 1e6))
    ours, plain, theirs = [], [], []
    peers = all(map(shutil.which, ("skopeo", "umoci")))
    for round_ in range(2 if options.quick else 5):
        image = make(parts)
        reference = image.push(store, "bench/image", str(round_))
        with tempfile.TemporaryDirectory(dir=options.work) as folder:
            blobs = []
            for each in image.layers:
                blobs.append(Path(folder, each.digest.split(":")[1]))
                blobs[-1].write_bytes(each.blob)
            begun = time.perf_counter()
            for each in blobs:
                subprocess.run(f"gzip -dc {each} | wc -c", shell=True, check=True, stdout=subprocess.DEVNULL)
            plain.append((time.perf_counter() - begun) * 1e3)
        begun = time.perf_counter()
        with Snapshot(api, reference):
            ours.append((time.perf_counter() - begun) * 1e3)
        if peers:
            with tempfile.TemporaryDirectory(dir=options.work) as folder:
                begun = time.perf_counter()
                subprocess.run(["skopeo", "copy", "--quiet", "--src-tls-verify=false", f"docker://{reference}", f"oci:{folder}/layout:x"], check=True, stdout=sys.stderr)
                subprocess.run(["umoci", "unpack", "--image", f"{folder}/layout:x", f"{folder}/bundle"], check=True, stdout=sys.stderr)
                theirs.append((time.perf_counter() - begun) * 1e3)
    lines = [
        line(figure, "Warren", "ms", ours, "from the request until the snapshot is ready"),
        line(figure, "gzip -dc", "ms", plain, limit=1.5),
    ]
    if peers:
        lines.append(line(figure, "skopeo + umoci", "ms", theirs))
    return lines


def cached():
    fields = dict(each.split(":") for each in Path("/proc/meminfo").read_text().splitlines())
    return int(fields["Cached"].split()[0]) * 1024


def forget():
    """Empties the page cache, so that what is in it afterwards is what was read."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("1")
    time.sleep(1)


def sharing(api, store, options):
    parts, _ = gather(100_000_000)
    reference = make(parts).push(store, "bench/common", "1")
    used = lambda: api.get("/api/images/usage").json()["usedBytes"]
    before = used()
    snapshots, disk = [], []
    for number in range(10):
        snapshots.append(Snapshot(api, manifest(run(f"head -c 1000000 /dev/urandom > /own-{number}"), base=reference)))
        disk.append((used() - before) / 1e6)
    read = "find /content -type f -exec cat {} + > /dev/null; cat /own-* > /dev/null"
    forget()
    start, boxes, seen = cached(), [], []
    try:
        for each in snapshots:
            boxes.append(create(api, snapshot=each.name))
            boxes[-1].out(read, timeout=120)
            seen.append((cached() - start) / 1e6)
    finally:
        for each in boxes + snapshots:
            each.__exit__()
    return [
        line(DISK, "Warren", "MB", disk[-1:], "an image of 100 MB, and a step of 1 MB in each; as the server counts its blocks"),
        line(DISK, "one of them", "MB", disk[:1], limit=1.2),
        line(CACHE, "Warren", "MB", seen[-1:], "each sandbox reads all files of the image"),
        line(CACHE, "one of them", "MB", seen[:1], limit=1.2),
    ]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--work", default=os.environ.get("WARREN_BENCH_DIR", "/var/tmp"))
    options = parser.parse_args()
    os.environ.pop("WARREN_SERVE_ARGS", None)
    if not registry.PROGRAM:
        sys.exit("there is no registry; on Debian: apt-get install docker-registry")
    with registry.Registry() as store, Server(f"--insecure-registry={store.address}", "--runtime", "container") as server, server.api() as api:
        print(json.dumps(imports(api, store, options) + sharing(api, store, options)))


if __name__ == "__main__":
    main()
