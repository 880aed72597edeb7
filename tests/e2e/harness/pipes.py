"""What is read of a process that `communicate` reads on."""

import os


def first_line(stream):
    """The next line of a pipe, and not a byte more: `readline` takes what follows it into a buffer, where `communicate` does not look."""
    line = b""
    while not line.endswith(b"\n") and (byte := os.read(stream.fileno(), 1)):
        line += byte
    return line.decode()
