"""Real servers for the tests: from wheels, on free ports, unprivileged, and gone when the test run is."""
