"""Scoring of candidates and the final selection."""
