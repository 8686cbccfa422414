"""From a finished snapshot to the published one: looked through, compared with the one in use, activated."""
