"""The client protocol as values: bytes to requests, replies to bytes (PRODUCT, Client protocol).

It promises that no input, however it is cut into pieces, makes it raise anything but its own
errors, hold more than its limits, or read a command differently (SAFETY P6); and that no text
in a reply can break out of its line. It refuses everything but arrays of bulk strings: inline
commands, nested arrays, frames over the limits. It knows nothing of sockets or of locks.

Start with `verbs`, the table of commands, whose rows are in a file for each family; `requests` has what
they become, `usage` how they are written, `arguments` how single words are read, `resp` the bytes.
"""
