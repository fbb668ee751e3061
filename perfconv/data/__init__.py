"""Readers of images and labels: torch and file readers only."""
