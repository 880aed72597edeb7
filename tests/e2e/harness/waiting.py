"""Waiting for a condition, with a deadline; never for a time."""

import time

from . import settings


def wait_for(condition, what, within=10.0, every=0.02, instead=None):
    """Returns the first true value of `condition()`; fails with `what` and what is so `instead` when it has not come for long."""
    within = settings.patient(within)
    deadline = time.monotonic() + within
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"still not so after {within} s: {what} (instead: {instead() if instead else value!r})")
        time.sleep(every)


def holds_for(condition, what, seconds, every=0.05):
    """Fails as soon as `condition()` stops being true within the next `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert condition(), f"stopped being so: {what}"
        time.sleep(every)
