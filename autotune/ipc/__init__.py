"""How the coordinator and the processes that it measures talk to each other."""
