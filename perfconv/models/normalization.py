"""Normalization: what a pretrained trunk expects its images to look like."""

import torch
from torch import Tensor, nn

# Factor on an image in [0, 1], then mean and divisor per channel (red, green, blue).
VARIANTS = {
    "imagenet": (1.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "mean_255": (255.0, (123.68, 116.779, 103.939), (1.0, 1.0, 1.0)),
    "none": (1.0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


class Normalization(nn.Module):
    """(factor * image - mean) / divisor of RGB images in [0, 1].

    Args:
        variant: "imagenet", as torchvision's weights expect; "mean_255", [0, 255] minus the mean,
            as the authors' do; "none".

    Nothing of it is in the state dict.
    """

    mean: Tensor
    divisor: Tensor

    def __init__(self, variant: str = "imagenet") -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise ValueError(
                f"Normalization: variant must be one of {', '.join(map(repr, VARIANTS))}, got "
                f"{variant!r}. Choose one of these."
            )
        self.variant = variant
        self.factor, mean, divisor = VARIANTS[variant]
        for name, values in (("mean", mean), ("divisor", divisor)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """The same shape as ``images`` (N, 3, H, W), floating-point, in [0, 1]."""
        if self.variant == "none":
            return images
        return (self.factor * images - self.mean) / self.divisor

    def extra_repr(self) -> str:
        return repr(self.variant)
