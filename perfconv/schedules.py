"""Schedules of the gates' temperature and of the target density: step in, number out."""


def authors_temperature(epoch: int) -> float:
    """The list of the authors' demo: 1.00, 0.97, ..., 0.01, two epochs each, then 0.001.

    Args:
        epoch: counted from 1.

    Raises:
        ValueError: ``epoch`` is below 1.

    Source: Kong and Fowlkes 2019, released code; meant for ``forward_mode="soft"``.
    Example:
        >>> [authors_temperature(epoch) for epoch in (1, 2, 3, 68, 69)]
        [1.0, 1.0, 0.97, 0.01, 0.001]
    """
    if epoch < 1:
        raise ValueError(
            f"authors_temperature: epoch must be 1 or more, got {epoch}. Count from 1."
        )
    held = (epoch - 1) // 2  # 0 .. 33 are the 34 values of the list
    return round(1 - 0.03 * held, 2) if held < 34 else 0.001


def linear_temperature(step: int, steps: int, *, start: float = 1.0, end: float = 0.01) -> float:
    """From ``start`` at step 0 to ``end`` at ``steps`` in a straight line, then ``end``.

    Raises:
        ValueError: a temperature is not above 0, or ``steps`` is below 1.

    Example:
        >>> [linear_temperature(step, 10, end=0.5) for step in (0, 5, 10, 20)]
        [1.0, 0.75, 0.5, 0.5]
    """
    _check_temperatures("linear_temperature", start, end)
    return start + (end - start) * _progress("linear_temperature", step, steps)


def exponential_temperature(
    step: int, steps: int, *, start: float = 1.0, end: float = 0.01
) -> float:
    """From ``start`` at step 0 to ``end`` at ``steps`` by a constant factor, then ``end``.

    Raises:
        ValueError: a temperature is not above 0, or ``steps`` is below 1.

    Example:
        >>> [exponential_temperature(step, 10, end=0.25) for step in (0, 5, 10, 20)]
        [1.0, 0.5, 0.25, 0.25]
    """
    _check_temperatures("exponential_temperature", start, end)
    return start * (end / start) ** _progress("exponential_temperature", step, steps)


def density_ramp(step: int, steps: int, *, target_density: float, start: float = 1.0) -> float:
    """The density to aim at: from ``start`` to ``target_density`` in a straight line, then that.

    Raises:
        ValueError: a density is outside [0, 1], or ``steps`` is below 1.

    Example:
        >>> [density_ramp(step, 10, target_density=0.5) for step in (0, 5, 10, 20)]
        [1.0, 0.75, 0.5, 0.5]
    """
    for name, value in (("target_density", target_density), ("start", start)):
        if not 0 <= value <= 1:
            raise ValueError(
                f"density_ramp: {name} must be in [0, 1], got {value}. Give the share of active "
                "pixels."
            )
    return start + (target_density - start) * _progress("density_ramp", step, steps)


def _progress(function: str, step: int, steps: int) -> float:
    if steps < 1:
        raise ValueError(
            f"{function}: steps must be 1 or more, got {steps}. Give the length of the schedule."
        )
    return min(max(step / steps, 0.0), 1.0)


def _check_temperatures(function: str, start: float, end: float) -> None:
    if not (start > 0 and end > 0):
        raise ValueError(
            f"{function}: temperatures must be above 0, got start={start}, end={end}. End at a "
            "small positive number."
        )
