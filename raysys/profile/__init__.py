"""The state of a user: a pure fold of events, and the stores that keep it."""
