"""A layer with a few programs of this machine and what they are linked to: enough of a system to run commands in."""

import re
import shutil
import subprocess
import tarfile
from functools import cache
from pathlib import Path

from .oci import Layer, entry, folder, symlink

PROGRAMS = ("sh", "cat", "id", "ls", "stat", "env", "pwd", "echo", "sleep", "test", "printf", "mkdir", "chown", "rm", "find", "sort", "perl", "sha256sum", "head")
PASSWD = "root:x:0:0:root:/root:/bin/sh\napp:x:1234:5678:App:/home/app:/bin/sh\nlost:x:4000:4000::/does/not/exist:/bin/sh\n"
GROUP = "root:x:0:\napp:x:5678:\nextra:x:6000:app\n"


@cache
def layer(*more, **options):
    """The programs, `/etc/passwd`, and the folders every system has."""
    entries = [folder(each) for each in ("bin", "etc", "home", "lib", "lib64", "proc", "sys", "dev", "usr", "var")]
    entries += [folder("tmp", mode=0o1777), folder("root", mode=0o700), folder("home/app", uid=1234, gid=5678)]
    entries += [entry("etc/passwd", PASSWD), entry("etc/group", GROUP)]
    seen = {"lib", "lib64", "bin"}
    for name in (*PROGRAMS, *more):
        program = Path(shutil.which(name)).resolve()
        entries.append(entry(f"bin/{name}", program.read_bytes(), mode=0o755))
        for library in libraries(program):
            inside = library.lstrip("/")
            for parent in reversed(Path(inside).parents):
                if str(parent) != "." and str(parent) not in seen:
                    seen.add(str(parent))
                    entries.append(folder(str(parent)))
            if inside not in seen:
                seen.add(inside)
                entries.append(entry(inside, Path(library).resolve().read_bytes(), mode=0o755))
    return Layer(entries, **options)


def libraries(program):
    listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=False).stdout
    return re.findall(r"(/\S+) \(0x", listed)


#: What a second layer of the tests changes of a first.
BELOW = [
    folder("data"), folder("data/gone"), entry("data/gone/f", "x"), entry("data/removed", "x"), entry("data/kept", "kept"),
    folder("data/opaque"), entry("data/opaque/old", "x"), folder("data/opaque/sub"), entry("data/opaque/sub/old", "x"),
    entry("data/linked", "linked", mode=0o640, uid=1234, gid=5678), entry("data/was-file", "x"), folder("data/was-folder"), entry("data/was-folder/f", "x"),
    symlink("data/was-link", "kept"),
]  # fmt: skip
ABOVE = [
    entry("data/.wh.gone"), entry("data/.wh.removed"), entry("data/.wh.never-there"), folder("data/opaque"), entry("data/opaque/.wh..wh..opq"), entry("data/opaque/new", "new"),
    entry("data/hard", kind=tarfile.LNKTYPE, link="data/linked"), symlink("data/soft", "/data/kept"), symlink("data/dangling", "/no/where"),
    folder("data/was-file"), entry("data/was-file/f", "now a folder"), entry("data/was-folder", "now a file"), entry("data/was-link", "now a file"),
    entry("data/attributes", "x", xattrs={"user.one": "first", "user.two": "é"}), entry("data/é 'quoted' \n name", "odd"),
    entry("data/owned", "x", uid=1234, gid=5678, mode=0o4751), folder("data/sticky", mode=0o1777), folder("no/parents/here"), entry("other/no/parent", "x"),
    entry("data/" + "long" * 60, "long"), entry("data/sparse", b"\0" * 300_000),
]  # fmt: skip
