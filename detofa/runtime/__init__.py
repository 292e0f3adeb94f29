"""Opened models and the detector around them; nothing here imports torch."""
