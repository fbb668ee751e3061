"""segmentation_loss: both forms against sums written out, gradients, and refusals."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from perfconv.losses import segmentation_loss

IGNORE = 255


def problem(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    logits = torch.randn(2, 4, 3, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 4, (2, 3, 5), generator=generator)
    labels[0, :, 0] = IGNORE
    labels[1, 1:] = IGNORE
    return logits, labels


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("form", ["valid", "authors"])
def test_value(generator: torch.Generator, form: str) -> None:
    logits, labels = problem(generator)
    total, count = 0.0, 0
    for image, row, column in (labels != IGNORE).nonzero().tolist():
        scores = logits[image, :, row, column]
        total += (scores.exp().sum().log() - scores[labels[image, row, column]]).item()
        count += 1
    expected = total / (count if form == "valid" else labels.numel() + 1)
    assert segmentation_loss(logits, labels, form=form).item() == pytest.approx(expected)


def test_other_ignore_index(generator: torch.Generator) -> None:
    logits, labels = problem(generator)
    shifted = torch.where(labels == IGNORE, -1, labels)
    expected = segmentation_loss(logits, labels)
    torch.testing.assert_close(segmentation_loss(logits, shifted, ignore_index=-1), expected)


@pytest.mark.parametrize("form", ["valid", "authors"])
def test_gradient(generator: torch.Generator, form: str) -> None:
    logits, labels = problem(generator)
    logits.requires_grad_()
    assert gradcheck(lambda x: segmentation_loss(x, labels, form=form), logits)
    segmentation_loss(logits, labels, form=form).backward()
    is_labelled = (labels != IGNORE)[:, None].expand_as(logits)
    assert (logits.grad[~is_labelled] == 0).all()
    assert (logits.grad[is_labelled] != 0).all()


@pytest.mark.parametrize("form", ["valid", "authors"])
def test_nothing_labelled(form: str) -> None:
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    loss = segmentation_loss(logits, torch.full((1, 2, 2), IGNORE), form=form)
    loss.backward()
    assert loss.item() == 0
    assert (logits.grad == 0).all()


def test_bfloat16_is_summed_in_float32(generator: torch.Generator) -> None:
    logits = torch.randn(1, 4, 64, 64, generator=generator).bfloat16()
    labels = torch.randint(0, 4, (1, 64, 64), generator=generator)
    loss = segmentation_loss(logits, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, F.cross_entropy(logits.float(), labels))


def test_compiles(generator: torch.Generator) -> None:
    logits, labels = problem(generator)
    compiled = torch.compile(segmentation_loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(logits, labels), segmentation_loss(logits, labels))


def test_refusals() -> None:
    logits, labels = torch.zeros(1, 3, 2, 2), torch.zeros(1, 2, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"labels must be in \[0, 3\) or 255, got 0 \.\. 7"):
        segmentation_loss(logits, torch.tensor([[[0, 7], [255, 1]]]).clamp(max=7))
    with pytest.raises(ValueError, match=r"labels must be in \[0, 3\)"):
        segmentation_loss(logits, labels - 1)
    with pytest.raises(ValueError, match=r"logits must be \(N, C, H, W\)"):
        segmentation_loss(logits, labels[:, :1])
    with pytest.raises(ValueError, match="form must be one of 'valid', 'authors', got 'sum'"):
        segmentation_loss(logits, labels, form="sum")
    with pytest.raises(TypeError, match="labels must be int64, got torch.int32"):
        segmentation_loss(logits, labels.int())
    with pytest.raises(TypeError, match="logits must be floating point"):
        segmentation_loss(logits.long(), labels)
