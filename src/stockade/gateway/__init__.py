"""Bytes that leave. Envoy parses and carries, one Python process decides, a doorman joins them to the door. See docs/gate.md."""
