"""The scheduler under test: pure parts by value, the ledger on real databases, turned by hand."""
