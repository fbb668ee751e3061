"""Schedules: the authors' list, lines and exponentials, ramps, their errors."""

from itertools import pairwise

import pytest

from perfconv.schedules import (
    authors_temperature,
    density_ramp,
    exponential_temperature,
    linear_temperature,
)


def test_authors_list() -> None:
    found = [authors_temperature(epoch) for epoch in range(1, 151)]
    values = [round(1.0 - 0.03 * index, 2) for index in range(34)]
    assert values[-1] == 0.01
    assert found == [value for value in values for _ in range(2)] + [0.001] * 82
    with pytest.raises(ValueError, match="epoch must be 1 or more"):
        authors_temperature(0)


@pytest.mark.parametrize("schedule", [linear_temperature, exponential_temperature])
def test_ends_and_direction(schedule) -> None:
    found = [schedule(step, 20, start=2.0, end=0.1) for step in range(25)]
    assert found[0] == 2.0
    assert found[20:] == [pytest.approx(0.1)] * 5
    assert all(after < before for before, after in pairwise(found[:21]))
    with pytest.raises(ValueError, match="temperatures must be above 0"):
        schedule(0, 10, end=0.0)
    with pytest.raises(ValueError, match="steps must be 1 or more"):
        schedule(0, 0)


def test_shapes_of_the_curves() -> None:
    assert linear_temperature(5, 10, start=1.0, end=0.0625) == pytest.approx(0.53125)
    assert exponential_temperature(5, 10, start=1.0, end=0.0625) == pytest.approx(0.25)


def test_density_ramp() -> None:
    assert density_ramp(5, 10, target_density=0.4, start=0.8) == pytest.approx(0.6)
    assert density_ramp(99, 10, target_density=0.4) == pytest.approx(0.4)
    with pytest.raises(ValueError, match=r"target_density must be in \[0, 1\]"):
        density_ramp(0, 10, target_density=1.5)
