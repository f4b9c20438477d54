"""How long rows of the trail are kept: its months, their archives, and legal holds."""
