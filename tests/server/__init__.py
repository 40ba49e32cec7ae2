"""Tests of a node's shell: the driver in a cluster without threads and sockets, peers over real ones."""
