"""The search: a study, what to measure next, and the choice of the answer."""
