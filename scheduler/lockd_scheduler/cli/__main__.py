"""`python -m lockd_scheduler.cli`."""

from lockd_scheduler.cli import main

main()
