"""Tests of lockd.testing: the server, its clock and faults, the cluster, the plugin, the documentation."""
