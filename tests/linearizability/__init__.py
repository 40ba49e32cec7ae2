"""Is a recorded history linearizable? The question that the simulator and the process tests ask.

A history is a list of operations, each with the moments at which it was called and answered. It
is linearizable when every answered operation can be given one moment between the two such that
a model which takes them one at a time in that order gives these very answers. An operation
without an answer may have taken effect at any moment after its call, or never.

`checker` decides it, for any `Model`. `register` and `keyvalue` are models of other people's
stores, with which the checker is itself held to their verdicts (tests/conformance). `locks` is
the model of ours. Start in `checker`.
"""
