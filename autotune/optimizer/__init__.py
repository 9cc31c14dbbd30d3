"""What to measure next, by ask and tell. Nothing here starts a process or reads a clock."""
