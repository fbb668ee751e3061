"""Losses."""

from perfconv.losses.density import density_loss

__all__ = ["density_loss"]
