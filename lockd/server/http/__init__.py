"""/v1: what the command line can do, as JSON over HTTP, for scripts and for the page at `/`.

Every request becomes the words of one command of the client protocol and takes the same way from there:
the same reading of arguments, the same authorisation, the same log. So there is one truth about what
may be asked, and this package has none of its own: `endpoints` is the table of paths, `models` the
shapes of bodies and answers, `api` carries a request out, `openapi` describes the table, `page` looks
at the cluster. An answer's status is that of docs/PROTOCOL.md, by the first word of the RESP error.

A request that waits is withdrawn when its connection ends, as over RESP (SAFETY G4).
"""
