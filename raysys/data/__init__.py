"""Catalogues and events: reading, cleaning, and the sample data."""
