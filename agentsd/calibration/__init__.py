"""Calibration: the full steps of one pipeline, chosen from its own runs and measured on held-out prompts."""
