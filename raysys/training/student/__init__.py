"""The student of the encoder: what it learns from, how it is fitted, and how near it came."""
