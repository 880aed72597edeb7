"""Attacks on the gateway that must fail: each case of `cases/` is one test."""

import importlib

import pytest

from egress import table

for name in table.TITLES:
    importlib.import_module(f"egress.cases.{name}")


@pytest.mark.parametrize("case", table.ALL, ids=lambda case: case.name)
def test_attack(world, case, record_property):
    record_property("seen", case.run(world) or "nothing arrived")


def test_there_are_enough():
    assert len(table.ALL) >= 60
