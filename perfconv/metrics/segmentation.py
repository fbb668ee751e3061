"""Segmentation: confusion matrix, IoU, pixel accuracy, and Cityscapes' instance-weighted iIoU."""

from dataclasses import dataclass

import torch
from torch import Tensor

from perfconv.metrics.state import IGNORE, Metric, check_integers, check_pair

# Cityscapes train id: average number of pixels of an instance of the class (the benchmark's own).
CITYSCAPES_INSTANCE_PIXELS = {
    11: 3462.4756,  # person
    12: 3930.4788,  # rider
    13: 12794.0203,  # car
    14: 27855.1264,  # truck
    15: 35732.1511,  # bus
    16: 67583.7076,  # train
    17: 6298.7201,  # motorcycle
    18: 4672.3249,  # bicycle
}
ABSENT = ("skip", "zero")


@dataclass(frozen=True)
class SegmentationScores:
    """In [0, 1]; NaN where there is nothing to divide by."""

    pixel_accuracy: float
    mean_accuracy: float  # mean of class_accuracy over classes that occur
    mean_iou: float
    class_iou: Tensor  # (C,), NaN for classes neither in truth nor prediction
    class_accuracy: Tensor  # (C,), NaN for classes not in the truth


@dataclass(frozen=True)
class InstanceScores:
    """In [0, 1]; NaN where there is nothing to divide by."""

    mean_iiou: float  # over the classes with instances that occur
    class_iiou: Tensor  # (C,), NaN for classes without instances


class SegmentationMetric(Metric):
    """Confusion matrix over the labelled pixels of a set.

    Args:
        num_classes: C.
        ignore_index: the label of pixels that do not count.

    Example:
        >>> metric = SegmentationMetric(2)
        >>> metric.update(torch.tensor([[0, 0, 1, 1]]), torch.tensor([[0, 1, 1, 255]]))
        >>> metric.compute().mean_iou
        0.5
    """

    def __init__(self, num_classes: int, *, ignore_index: int = IGNORE) -> None:
        if num_classes < 1:
            raise ValueError(
                f"{type(self).__name__}: num_classes must be 1 or more, got {num_classes}. Count "
                "the classes without the ignored label."
            )
        super().__init__(confusion=torch.zeros(num_classes, num_classes, dtype=torch.int64))
        self.num_classes, self.ignore_index = num_classes, ignore_index

    @property
    def confusion(self) -> Tensor:
        """(C, C), int64, pixels: rows are true classes, columns predicted ones."""
        return self._sums["confusion"].clone()

    def update(self, prediction: Tensor, labels: Tensor) -> None:
        """Adds images.

        Args:
            prediction: class numbers, int64, any shape.
            labels: the same shape, int64, 0 .. C - 1 or ``ignore_index``.

        Raises:
            TypeError: one of them is not an integer tensor.
            ValueError: shapes differ, or a number is none of the above.

        Notes: syncs with the host.
        """
        name = type(self).__name__
        for what, map in (("prediction", prediction), ("labels", labels)):
            check_integers(name, what, map)
        check_pair(name, prediction, labels)
        counts = labels != self.ignore_index
        true, predicted = labels[counts].long(), prediction[counts].long()
        for what, classes in (("labels", true), ("prediction", predicted)):
            if (
                classes.numel()
                and not 0 <= int(classes.min()) <= int(classes.max()) < self.num_classes
            ):
                raise ValueError(
                    f"{name}.update: {what} must be in [0, {self.num_classes}), got "
                    f"{int(classes.min())} .. {int(classes.max())}. Map other labels to "
                    f"{self.ignore_index}; the prediction has none to ignore."
                )
        pairs = torch.bincount(
            true * self.num_classes + predicted, minlength=self.num_classes**2
        ).reshape(self.num_classes, self.num_classes)
        self._sums["confusion"] += pairs.to(self._sums["confusion"].device)

    def compute(self, *, absent: str = "skip") -> SegmentationScores:
        """IoU of a class is tp / (tp + fp + fn); pixel accuracy the share of right pixels.

        Args:
            absent: of classes neither in truth nor prediction: "skip" leaves them out of
                ``mean_iou``, "zero" counts them as 0, as the code of Kong and Fowlkes does.

        Raises:
            ValueError: ``absent`` is neither.
        """
        if absent not in ABSENT:
            raise ValueError(
                f"{type(self).__name__}.compute: absent must be 'skip' or 'zero', got {absent!r}."
            )
        confusion = self._sums["confusion"].double()
        right, true = confusion.diagonal(), confusion.sum(1)
        iou = right / (true + confusion.sum(0) - right)
        accuracy = right / true
        mean_iou = iou.nanmean() if absent == "skip" else iou.nan_to_num(0).mean()
        return SegmentationScores(
            pixel_accuracy=(right.sum() / confusion.sum()).item(),
            mean_accuracy=accuracy.nanmean().item(),
            mean_iou=mean_iou.item(),
            class_iou=iou,
            class_accuracy=accuracy,
        )

    def _settings(self) -> tuple[object, ...]:
        return (self.num_classes, self.ignore_index)


class InstanceMetric(Metric):
    """iIoU of Cityscapes: an instance counts the same whether it is near or far.

    Of a class, with w the average size of its instances over the size of this one:
    tp = sum of w over right pixels, fn = sum of w over wrong ones, fp = pixels of other classes
    that are predicted as it, unweighted; iIoU = tp / (tp + fp + fn).

    Args:
        num_classes: C.
        instance_pixels: average pixels of an instance, by class; default: Cityscapes' train ids.
        ignore_index: the label of pixels that do not count.

    Source: Cordts et al. 2016, section 4.1, and the benchmark's evaluation.
    """

    def __init__(
        self,
        num_classes: int = 19,
        *,
        instance_pixels: dict[int, float] | None = None,
        ignore_index: int = IGNORE,
    ) -> None:
        sizes = CITYSCAPES_INSTANCE_PIXELS if instance_pixels is None else instance_pixels
        if not all(0 <= label < num_classes and pixels > 0 for label, pixels in sizes.items()):
            raise ValueError(
                f"InstanceMetric: instance_pixels must map classes in [0, {num_classes}) to "
                f"numbers above 0, got {sizes}."
            )
        super().__init__(
            true_positive=torch.zeros(num_classes, dtype=torch.float64),
            false_negative=torch.zeros(num_classes, dtype=torch.float64),
            false_positive=torch.zeros(num_classes, dtype=torch.int64),
        )
        self.num_classes, self.ignore_index = num_classes, ignore_index
        self.instance_pixels = dict(sizes)

    def update(self, prediction: Tensor, labels: Tensor, instances: Tensor) -> None:
        """Adds one image.

        Args:
            prediction: (H, W), int64, class numbers.
            labels: (H, W), int64, 0 .. C - 1 or ``ignore_index``.
            instances: (H, W), int64, equal within an instance and different between them; 0
                where a pixel belongs to none (a crowd, a class without instances). Such pixels
                are neither tp nor fn.

        Raises:
            TypeError: one of them is not an integer tensor.
            ValueError: shapes differ, or are not (H, W).

        Notes: syncs with the host.
        """
        maps = {"prediction": prediction, "labels": labels, "instances": instances}
        for what, map in maps.items():
            check_integers("InstanceMetric", what, map)
        if labels.dim() != 2:
            raise ValueError(
                f"InstanceMetric.update: labels must be (H, W), got {tuple(labels.shape)}. Give "
                "one image: the same number in two images is not one instance."
            )
        check_pair("InstanceMetric", prediction, labels)
        check_pair("InstanceMetric", instances, labels)
        # Weighted sums have no fixed order on other devices.
        prediction, labels, instances = prediction.cpu(), labels.cpu(), instances.cpu()
        for label, average in self.instance_pixels.items():
            predicted = prediction == label
            wrong = predicted & (labels != label) & (labels != self.ignore_index)
            self._sums["false_positive"][label] += wrong.sum()
            of_class = (labels == label) & (instances > 0)
            if not bool(of_class.any()):
                continue
            _, which = instances[of_class].unique(return_inverse=True)
            sizes = torch.bincount(which).double()
            weight = average / sizes
            right = torch.bincount(which, predicted[of_class].double(), minlength=len(sizes))
            self._sums["true_positive"][label] += (right * weight).sum()
            self._sums["false_negative"][label] += ((sizes - right) * weight).sum()

    def compute(self) -> InstanceScores:
        """iIoU by class, and its mean over those that occur."""
        right = self._sums["true_positive"]
        iiou = right / (right + self._sums["false_negative"] + self._sums["false_positive"])
        has_instances = torch.zeros(self.num_classes, dtype=torch.bool)
        has_instances[list(self.instance_pixels)] = True
        iiou = torch.where(has_instances, iiou, torch.nan)
        return InstanceScores(mean_iiou=iiou.nanmean().item(), class_iiou=iiou)

    def _settings(self) -> tuple[object, ...]:
        return (self.num_classes, self.ignore_index, tuple(sorted(self.instance_pixels.items())))
