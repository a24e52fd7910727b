"""Evaluation of quality and speed on captions: what is measured, stored and reported."""
