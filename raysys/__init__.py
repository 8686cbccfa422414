"""Raysys: a distributed, real-time recommender that understands text."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("raysys")
except PackageNotFoundError:  # run from an uploaded working directory, not installed
    __version__ = "0.0.0+uninstalled"
