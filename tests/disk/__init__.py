"""The durable log's tests. memory.py is the disk that forgets, samples.py the writes to put on it."""
