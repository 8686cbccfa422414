"""Candidate sources inside a shard, and the merge over shards."""
