"""What the trials of a study tell: statistics over records."""
