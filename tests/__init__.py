"""The tests. Folders follow the source; a rule of the safety contract is cited by its number where it is kept."""
