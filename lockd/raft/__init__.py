"""Raft: several nodes keep one log, and agree on it while a majority of them can talk.

The core is a function of its inputs. It reads no clock, opens no file, sends nothing and draws
nothing: ticks, messages, proposals and a source of numbers are handed in, and what is to be
written, sent and applied is handed out. So the simulator runs the very code that a server runs,
and the same inputs give the same outputs.

Promised, by the rules of SAFETY.md that begin with C: at most one leader in a term; two logs
that agree at an index agree before it; an entry that was handed out as committed is never
replaced; a confirmed read sees every write that was acknowledged before it began. None of that
rests on time. Progress does: it needs a majority whose messages arrive within an election
timeout and whose disks write.

Refused: leases of leadership by the clock, forwarding of proposals, votes and acks before the
disk has what they promise.

What the caller owes
--------------------
One task owns a `RaftNode`. It is made from what the disk holds:

    node = RaftNode(config, configuration=..., hard_state=..., log=Log.from_run(run), draw=..., applied=...)

and then is driven by a loop. Inputs come in any order: `tick()` at even intervals, `step(message)`
for each message from a peer whose identity was checked, `propose(kind, payload)`,
`read_index()`, and an operator's `propose_change(change)` and `transfer_leadership(to)`. After
any of them call `ready()` until it gives None, and for each Ready, in this order:

1. Send `send_now`. It may leave before anything below is done. An InstallSnapshot is sent by
   streaming the snapshot's file; the receiver steps the message when it has the file whole and
   checked. Call `report_snapshot_failed(peer)` when that comes to nothing, and send the file's end
   again while the peer has not answered: the core does not repeat it.
2. If there is a `snapshot`: load the state machine from it, and have the disk begin its log there.
   Give `hard_state` and `append` to the disk, in the order of the Readys. The disk first drops
   whatever it has at or after `append.first`, if there is something to append. The two are one
   write, which a crash leaves whole or not at all: the hard state speaks of these entries.
3. When that write *and all before it* are durable: call `persisted(term, index)` for the last
   entry of a non-empty `append`, once for each, in order; then send `send_after_durable`. Messages
   addressed to the own node go back in with `step()`. A Ready without a write waits for the
   writes before it all the same. A failed write ends the node: nothing may be sent after it.
4. Apply `committed` in order, then call `applied(index)`. For a CONFIGURATION entry, before that,
   call `apply_change(change)`: from then on it is in force. An entry of a proposal that
   shows another term at its index was not accepted and never will be.
5. Answer the rounds in `reads`, each when its `index` is applied; then, if `reads_dropped`, tell
   every other reader of this leadership that it must ask again.

Steps 2 and 4 may overlap: `committed` holds only what is on this node's disk already. When a
snapshot of the applied state is durable, call `snapshot_taken(meta)`; from then on `compact(index)`
may drop the log up to it, and less is better: who lags behind by less is sent entries.

Messages may be lost, doubled, delayed and reordered. A sender that goes to a new address or a
slow one needs no notice; the core finds out by itself.

An exception from `step` means that committed data was lost somewhere: stop the node.

Where to start reading: bottom-up like the paper. `entries` and `messages` are the words;
`quorum`, `membership`, `log` and `progress` the parts; `state` the roles; `election`, `replication` and
`reads` the rules; `node` the surface. `codec` is the wire form.
"""
