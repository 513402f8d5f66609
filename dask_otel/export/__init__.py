"""Writes OpenTelemetry: records become OTel spans and leave through the standard exporters."""
