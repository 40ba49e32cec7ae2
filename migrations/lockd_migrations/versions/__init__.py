"""One file for each revision. A revision that was released is never edited: add the next one."""
