"""The bridge's page on the scheduler's own HTTP server."""
