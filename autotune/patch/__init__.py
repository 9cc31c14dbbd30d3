"""Scripts that do not call autotune: a start-up hook finds their loader, and sets it up."""
