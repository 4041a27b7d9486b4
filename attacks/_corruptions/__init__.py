"""Common corruptions: eighteen functions of an image, a severity and a key.

One decorated function per corruption, in the file of its group; nothing else names them. All is
done on the CPU in float64 and truncated to 8 bits, as CIFAR-10-C and ImageNet-C are: the same key
gives the same bytes on every device, in every batch and after every interruption.

Hendrycks & Dietterich, "Benchmarking neural network robustness to common corruptions and
perturbations", ICLR 2019 (arXiv:1903.12261).
"""

from __future__ import annotations

from . import blur, digital, noise, weather  # noqa: F401  (they register)
from .catalogue import CORRUPTIONS, SEVERITIES, corrupt, grouped

__all__ = ["CORRUPTIONS", "SEVERITIES", "corrupt", "grouped"]
