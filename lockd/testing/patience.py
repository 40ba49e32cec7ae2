"""How long a test waits for what must come."""

PATIENCE_SECONDS = 10.0
"""Then it fails: what it waits for does not come by itself, and a busy machine needs less."""
