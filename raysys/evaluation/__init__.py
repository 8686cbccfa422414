"""Splits, metrics and protocols for honest offline evaluation."""
