"""Stand-ins that the harness supplies for any model."""
