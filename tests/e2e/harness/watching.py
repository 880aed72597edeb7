"""Watches a tree of this machine: what was changed in it, even if it was put back."""

import ctypes
import hashlib
import os
import struct

MODIFY, ATTRIB, CLOSE_WRITE, MOVED, CREATE, DELETE = 0x2, 0x4, 0x8, 0xC0, 0x100, 0x200
CHANGES = MODIFY | ATTRIB | CLOSE_WRITE | MOVED | CREATE | DELETE


class Watch:
    """From `with` on; `changes()` are the names of what was written, made, moved, deleted or given other attributes."""

    def __init__(self, root):
        self.root = root

    def __enter__(self):
        libc = ctypes.CDLL(None, use_errno=True)
        self.fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        assert self.fd >= 0, os.strerror(ctypes.get_errno())
        self.folders = {}
        for folder, _, _ in os.walk(self.root):
            watch = libc.inotify_add_watch(self.fd, os.fsencode(folder), CHANGES)
            assert watch >= 0, os.strerror(ctypes.get_errno())
            self.folders[watch] = folder
        self.before = state(self.root)
        return self

    def __exit__(self, *_):
        os.close(self.fd)

    def changes(self):
        found = []
        while True:
            try:
                data = os.read(self.fd, 65536)
            except BlockingIOError:
                break
            at = 0
            while at < len(data):
                watch, mask, _, length = struct.unpack_from("iIII", data, at)
                name = data[at + 16 : at + 16 + length].rstrip(b"\0")
                found.append((os.path.join(self.folders.get(watch, "?"), os.fsdecode(name)), hex(mask)))
                at += 16 + length
        after = state(self.root)
        return found + [name for name in {**self.before, **after} if self.before.get(name) != after.get(name)]


def state(root):
    """All there is, with contents, modes, owners and times."""
    made = {}
    for folder, names, files in os.walk(root):
        for name in names + files:
            path = os.path.join(folder, name)
            status = os.lstat(path)
            content = hashlib.sha256(open(path, "rb").read()).hexdigest() if name in files and not os.path.islink(path) else ""
            made[path] = (status.st_mode, status.st_uid, status.st_gid, status.st_size, status.st_mtime_ns, status.st_ctime_ns, content)
    return made
