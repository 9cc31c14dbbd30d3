"""Frameworks that own the training loop: one call each, before their training begins."""
