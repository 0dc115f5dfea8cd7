"""Which should I scale? Models beside each other: what they cost, what they know, and which difference is noise."""
