"""What is timed: a file a path, run in a process (a peer in an environment) of its own."""
