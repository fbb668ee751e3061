# Types of the native module (csrc/python/module.cpp).

def build_info() -> dict[str, str]: ...
def cpu_isa() -> str: ...
def measured_classes() -> list[str]: ...
def set_break_even(densities: list[float], source: str) -> None: ...
def explain_cpu(
    input: list[int],
    weight: list[int],
    output: list[int],
    groups: int,
    dtype: str,
    active: int,
    algorithm: str,
) -> list[tuple[str, bool, str]]: ...
def explain_cuda(
    input: list[int],
    weight: list[int],
    output: list[int],
    groups: int,
    dtype: str,
    allow_tf32: bool,
    is_aligned: bool,
    compute_capability: int,
    expected_density: float | None,
    algorithm: str,
) -> list[tuple[str, bool, str]]: ...
