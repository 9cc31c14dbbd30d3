"""Trials, as the coordinator sees them: started, asked for blocks, watched, and ended."""
