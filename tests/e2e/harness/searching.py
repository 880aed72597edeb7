"""Looks for bytes where a sandbox could have them: the memory and variables of its processes, and files; all from the host."""

import array
import os
import stat
import subprocess

from . import host

PAGE = os.sysconf("SC_PAGE_SIZE")
PIECE = 8 << 20
#: A range of memory that is larger is looked through by the pages that are there.
LARGE = 64 << 20


def processes_with(sandbox_id, *needles):
    """`(pid, place, needle)` for each of them in the memory, variables or arguments of the sandbox's processes; and how many of these
    there are."""
    found, pids = [], host.sandbox_processes().get(sandbox_id, [])
    for pid in pids:
        for place in ("environ", "cmdline"):
            text = host.read(f"/proc/{pid}/{place}")
            found += [(pid, place, each) for each in needles if each in text]
        for each in memory_with(pid, needles):
            found.append((pid, "memory", each))
    return found, len(pids)


def memory_with(pid, needles):
    found, left = set(), max(map(len, needles)) - 1
    try:
        with open(f"/proc/{pid}/mem", "rb", 0) as memory, open(f"/proc/{pid}/pagemap", "rb", 0) as pagemap:
            for start, end in ranges(pid, pagemap):
                tail = b""
                for at in range(start, end, PIECE):
                    try:
                        memory.seek(at)
                        piece = tail + memory.read(min(PIECE, end - at))
                    except (OSError, ValueError, OverflowError):
                        break
                    found |= {each for each in needles if each in piece}
                    tail = piece[-left:]
    except (FileNotFoundError, ProcessLookupError):
        pass
    return found


def ranges(pid, pagemap):
    with open(f"/proc/{pid}/maps") as maps:
        lines = maps.read().splitlines()
    for line in lines:
        where, rights = line.split()[:2]
        if "r" not in rights or line.endswith(("[vvar]", "[vsyscall]", "[vvar_vclock]")):
            continue
        start, end = (int(each, 16) for each in where.split("-"))
        if end - start <= LARGE:
            yield start, end
        else:
            yield from present(start, end, pagemap)


def present(start, end, pagemap):
    """The parts that are in memory or swap."""
    step = 1 << 16
    for first in range(start // PAGE, end // PAGE, step):
        count = min(step, end // PAGE - first)
        pagemap.seek(first * 8)
        entries = array.array("Q", pagemap.read(count * 8))
        begun = None
        for index, entry in enumerate([*entries, 0]):
            if entry >> 62 and begun is None:
                begun = index
            elif not entry >> 62 and begun is not None:
                yield (first + begun) * PAGE, (first + index) * PAGE
                begun = None


def files_with(needles, *places, without=()):
    """Names of files below these places that hold one of them."""
    patterns = [word for each in needles for word in ("-e", each)]
    excluded = [f"--exclude={name}" for name in without]
    done = subprocess.run(
        ["grep", "--recursive", "--files-with-matches", "--fixed-strings", "--binary-files=text", "--devices=skip", *excluded, *patterns, "--", *map(str, places)],
        capture_output=True, text=True, timeout=90, check=False,
    )
    assert done.returncode in (0, 1, 2), done.stderr
    return done.stdout.splitlines()


def written_with(needles, root, since):
    """`(name, needle)` of files below `root`, disks among them, that were written after `since` and hold one of these bytes. Holes are passed
    over, and what is mounted there is looked at where it belongs."""
    found, device, left = [], os.stat(root).st_dev, max(map(len, needles)) - 1
    for folder, names, files in os.walk(root):
        names[:] = [name for name in names if is_near(os.path.join(folder, name), device)]
        for name in files:
            path = os.path.join(folder, name)
            try:
                status = os.lstat(path)
                if not stat.S_ISREG(status.st_mode) or max(status.st_mtime, status.st_ctime) < since:
                    continue
                with open(path, "rb", 0) as file:
                    held = {each for piece in data_of(file, status.st_size, left) for each in needles if each in piece}
                    found += [(path, each) for each in held]
            except FileNotFoundError:
                pass
    return found


def is_near(path, device):
    try:
        return os.lstat(path).st_dev == device
    except OSError:
        return False


def data_of(file, size, left):
    end = 0
    while end < size:
        try:
            start = os.lseek(file.fileno(), end, os.SEEK_DATA)
        except OSError:
            return
        end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
        tail = b""
        os.lseek(file.fileno(), start, os.SEEK_SET)
        while start < end:
            piece = file.read(min(PIECE, end - start))
            if not piece:
                return
            start += len(piece)
            yield tail + piece
            tail = piece[-left:]
