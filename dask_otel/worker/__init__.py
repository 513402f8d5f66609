"""What runs in workers: inside a task, the current OpenTelemetry span is the task."""
