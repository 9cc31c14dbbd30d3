"""What was asked for, what was recorded, and where that is stored."""
