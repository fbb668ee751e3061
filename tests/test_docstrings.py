"""The examples in docstrings run and print what they say."""

import doctest
import importlib
import pkgutil

import pytest
import torch

import perfconv

MODULES = [
    module.name
    for package in (perfconv.ops, perfconv.nn, perfconv.losses, perfconv.metrics)
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}.")
] + [
    "perfconv.convert",
    "perfconv.flops",
    "perfconv.schedules",
    "perfconv.data.scenes",
    "perfconv.train.networks",
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    torch.manual_seed(0)
    module = importlib.import_module(name)
    names = {**vars(module), "perfconv": perfconv, "torch": torch}
    outcome = doctest.testmod(module, extraglobs=names, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert outcome.failed == 0
