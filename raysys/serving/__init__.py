"""The Ray Serve application: the only code that imports Ray Serve."""
