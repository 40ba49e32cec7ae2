"""The tests. Folders follow the source; a test that keeps a safety rule cites its number."""
