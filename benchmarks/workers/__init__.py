"""What is timed, a file a path; each runs in a process, and a peer's in an environment, of its own."""
