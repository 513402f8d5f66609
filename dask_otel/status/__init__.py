"""The status page on the scheduler's HTTP server, and its JSON."""
