"""Tests of the Raft core. `single` drives one node by hand, `network` a cluster in memory."""
