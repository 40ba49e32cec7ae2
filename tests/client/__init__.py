"""Tests of the client: its pure core, its engine against nodes that misbehave, and whole clusters."""
