"""What the storage adapters promise, tried against real servers. Start at test_storage_contract.py."""
