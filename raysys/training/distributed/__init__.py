"""The offline build spread over a Ray cluster: the only part of training that imports Ray."""
