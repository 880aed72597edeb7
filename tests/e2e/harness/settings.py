"""Where the server is and who we are, as `tests/e2e/run` says through the environment."""

import os

URL = os.environ.get("WARREN_URL", "").rstrip("/")
KEY = os.environ.get("WARREN_KEY", "")
#: A key of another organisation.
OTHER_KEY = os.environ.get("WARREN_OTHER_KEY", "")
#: The server's process, when `run` started it on this machine; 0 when the suites are aimed at another one.
SERVER_PID = int(os.environ.get("WARREN_SERVER_PID", "0") or 0)
#: How much longer than usual everything may take: on a machine that is emulated, or beside other work.
PATIENCE = float(os.environ.get("WARREN_PATIENCE", "1"))


def patient(seconds):
    """How long to wait for what usually takes a part of `seconds`. Who waits goes on as soon as it is there, so this costs nothing."""
    return 4 * seconds * PATIENCE


#: Whether sandboxes are virtual machines unless they ask for something else.
MACHINES = "--runtime vm" in os.environ.get("WARREN_SERVE_ARGS", "").replace("=", " ")
#: The program, for suites that start servers of their own.
PROGRAM = os.environ.get("WARREN_BIN", "")
