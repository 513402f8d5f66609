"""Converts records and metric snapshots to OpenTelemetry and exports them."""
