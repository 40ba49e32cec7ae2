"""Storage that refuses a writer whose lock has passed on."""
