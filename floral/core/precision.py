"""The precisions in which a device can compute products of matrices in layers."""

from typing import Literal, get_args

Precision = Literal["fp32", "tf32", "bf16"]
"""Precision of the products in layers.

- fp32: single precision everywhere.
- tf32: a GPU rounds the factors of float32 products to 10 bits of mantissa, in training and in evaluation.
- bf16: local training rounds the factors and results of products to bfloat16. Weights, losses, updates, averages and
  evaluation stay in single precision.
"""
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
