------------------------------- MODULE LockdTrace -------------------------------
(* Do recorded runs of lockd's Raft fit etcd's specification of Raft?

   A generated module gives the traces: what the nodes did, event by event, each with the
   messages in full and, at the end of each call into a node, the node's state. Here every event
   is an action of etcdraft, and it has to be possible where it stands, to send and consume
   exactly those messages, to lead to exactly that state, and to keep every invariant. A trace
   that gets to its end is accepted; one that gets stuck is not, and the last position that was
   printed for it says where.

   Messages and entries are compared whole: all that a node says must be what the
   specification's node would say in its state. *)
EXTENDS etcdraft

CONSTANTS
    Traces,         \* sequence of sequences of events
    SendsAtOnce     \* for each, whether some messages leave before the disk has anything

VARIABLES
    trace,     \* which one, from the beginning to the end of a behaviour
    position   \* its next event

----
(* Words of the generated module. *)

Value(term, id) == [term |-> term, type |-> ValueEntry, value |-> [val |-> id]]

Change(term, voters, learners) ==
    [term |-> term, type |-> ConfigEntry, value |-> [newconf |-> voters, learners |-> learners]]

VoteRequest(term, from, to, lastIndex, lastTerm) ==
    [mtype |-> RequestVoteRequest, mterm |-> term, mlastLogTerm |-> lastTerm,
     mlastLogIndex |-> lastIndex, msource |-> from, mdest |-> to]

VoteReply(term, from, to, granted) ==
    [mtype |-> RequestVoteResponse, mterm |-> term, mvoteGranted |-> granted,
     msource |-> from, mdest |-> to]

Append_(subtype, term, from, to, prevIndex, prevTerm, entries, commit) ==
    [mtype |-> AppendEntriesRequest, msubtype |-> subtype, mterm |-> term,
     mprevLogIndex |-> prevIndex, mprevLogTerm |-> prevTerm, mentries |-> entries,
     mcommitIndex |-> commit, msource |-> from, mdest |-> to]

Entries(term, from, to, prevIndex, prevTerm, entries, commit) ==
    Append_("app", term, from, to, prevIndex, prevTerm, entries, commit)

Beat(term, from, to, commit) == Append_("heartbeat", term, from, to, 0, 0, <<>>, commit)

AppendReply_(subtype, term, from, to, success, match) ==
    [mtype |-> AppendEntriesResponse, msubtype |-> subtype, mterm |-> term, msuccess |-> success,
     mmatchIndex |-> match, msource |-> from, mdest |-> to]

EntriesReply(term, from, to, success, match) == AppendReply_("app", term, from, to, success, match)

BeatReply(term, from, to) == AppendReply_("heartbeat", term, from, to, TRUE, 0)

(* A node's state. terms: runs <<term, last index of that term>>, which tell every entry's term.
   match: for a leader <<member, index>> of each member, else empty. *)
State(term, vote, commit, role, terms, voters, learners, match) ==
    [term |-> term, vote |-> vote, commit |-> commit, role |-> role, terms |-> terms,
     voters |-> voters, learners |-> learners, match |-> match]

----
(* TLC evaluates a constant that a configuration file defines again at each use: the traces are long. *)
ASSUME TLCSet(1, Traces)

Events == TLCGet(1)[trace]

Event == Events[position]

(* Every founder begins in term 1 with one committed entry, as etcd's bootstrap leaves it: the
   specification has no commit by heartbeat before that. Who joins later begins with nothing. *)
TraceInitServerVars ==
    /\ currentTerm = [i \in Server |-> IF i \in InitServer THEN 1 ELSE 0]
    /\ state = [i \in Server |-> Follower]
    /\ votedFor = [i \in Server |-> Nil]

TraceInitLogVars ==
    /\ log = [i \in Server |-> IF i \in InitServer THEN <<Value(1, 0)>> ELSE <<>>]
    /\ commitIndex = [i \in Server |-> IF i \in InitServer THEN 1 ELSE 0]

FoundingConfig == [jointConfig |-> <<InitServer, {}>>, learners |-> {}]

(* In place of etcdraft's PersistState, which writes the commit index and the configuration as
   they are: lockd writes a commit index along with terms, votes and entries only, and takes the
   configuration from the log when it starts. Term, vote and log must be on disk as they are. *)
TracePersistState(i) ==
    LET disk == Event.disk
        change == SelectLastInSubSeq(log[i], 1, disk.commit, LAMBDA x : x.type = ConfigEntry)
    IN /\ disk.term = currentTerm[i]
       /\ disk.vote = votedFor[i]
       /\ disk.last = Len(log[i])
       /\ durableState[i].commitIndex <= disk.commit
       /\ disk.commit <= commitIndex[i]
       /\ durableState' = [durableState EXCEPT ![i] = [
              currentTerm |-> currentTerm[i],
              votedFor |-> votedFor[i],
              log |-> Len(log[i]),
              commitIndex |-> disk.commit,
              config |-> IF change = 0
                         THEN FoundingConfig
                         ELSE [jointConfig |-> <<log[i][change].value.newconf, {}>>,
                               learners |-> log[i][change].value.learners]]]

----
Sent(message) == pendingMessages' = WithMessage(message, pendingMessages)

(* Not in etcdraft, where all messages wait for the disk: what lockd sends at once, as etcd's code may
   (Ongaro's thesis, 10.2.1). Appends, heartbeats and answers to those; never a vote, nor an ack. *)
SendNow(message) ==
    /\ SendsAtOnce[trace]
    /\ \/ message.mtype = AppendEntriesRequest
       \/ message.mtype = AppendEntriesResponse /\ message.msubtype = "heartbeat"
    /\ message \in DOMAIN pendingMessages
    /\ pendingMessages' = WithoutMessage(message, pendingMessages)
    /\ messages' = WithMessage(message, messages)
    /\ UNCHANGED <<serverVars, candidateVars, leaderVars, logVars, configVars, durableState>>

(* The event as an action of etcdraft's Next, but for SendNow. *)
Act(e) ==
    CASE e.does = "Timeout" -> Timeout(e.node)
      [] e.does = "RequestVote" -> RequestVote(e.node, e.message.mdest) /\ Sent(e.message)
      [] e.does = "BecomeLeader" -> BecomeLeader(e.node)
      [] e.does = "ClientRequest" -> ClientRequest(e.node, e.value)
      [] e.does = "AppendEntries" ->
            LET first == e.message.mprevLogIndex + 1
                peer == e.message.mdest
            IN /\ first \in matchIndex[e.node][peer] + 1..Len(log[e.node]) + 1
               /\ AppendEntries(e.node, peer, <<first, first + Len(e.message.mentries)>>)
               /\ Sent(e.message)
      [] e.does = "AppendEntriesToSelf" -> AppendEntriesToSelf(e.node) /\ Sent(e.message)
      [] e.does = "Heartbeat" -> Heartbeat(e.node, e.message.mdest) /\ Sent(e.message)
      [] e.does = "AdvanceCommitIndex" -> AdvanceCommitIndex(e.node)
      [] e.does = "SendNow" -> SendNow(e.message)
      [] e.does = "Ready" -> Ready(e.node)
      [] e.does = "Restart" -> Restart(e.node)
      [] e.does = "StepDownToFollower" -> StepDownToFollower(e.node)
      [] e.does = "AddNewServer" -> AddNewServer(e.node, e.peer)
      [] e.does = "AddLearner" -> AddLearner(e.node, e.peer)
      [] e.does = "DeleteServer" -> DeleteServer(e.node, e.peer)
      [] e.does = "ApplySimpleConfChange" -> ApplySimpleConfChange(e.node)
      [] e.does = "DuplicateMessage" -> DuplicateMessage(e.message)
      [] e.does = "DropMessage" -> e.message \in DOMAIN messages /\ DropMessage(e.message)
      [] e.does = "Nothing" -> UNCHANGED vars

Is(what, expected, actual) ==
    IF expected = actual
    THEN TRUE
    ELSE Print(<<"differs", trace, position, what, expected, actual>>, FALSE)

StateIs(i, s) ==
    /\ Is("term", s.term, currentTerm'[i])
    /\ Is("vote", s.vote, votedFor'[i])
    /\ Is("commit", s.commit, commitIndex'[i])
    /\ Is("role", s.role, state'[i])
    /\ Is("voters", <<s.voters, {}>>, config'[i].jointConfig)
    \* A learner that is promoted stays among the learners there.
    /\ Is("learners", s.learners, config'[i].learners \ s.voters)
    /\ Is("last", IF s.terms = <<>> THEN 0 ELSE s.terms[Len(s.terms)][2], Len(log'[i]))
    /\ \A k \in DOMAIN s.terms :
        \A index \in (IF k = 1 THEN 1 ELSE s.terms[k - 1][2] + 1)..s.terms[k][2] :
            Is("term of entry", s.terms[k][1], log'[i][index].term)
    /\ \A k \in DOMAIN s.match : Is("match", s.match[k][2], matchIndex'[i][s.match[k][1]])

(* As QuorumLogInv, on disk: what anyone takes for committed survives the crash of all. *)
CommittedIsOnQuorumsDisksInv ==
    \A i \in Server : \A quorum \in Quorum(GetConfig(i)) : \E j \in quorum :
        durableState[j].log >= commitIndex[i] /\ IsPrefix(Committed(i), log[j])

Broken(name) == Print(<<"broken", trace, position, name>>, FALSE)

(* IF, not \/: TLC would look at both sides of that. *)
Safe ==
    /\ IF LogInv' THEN TRUE ELSE Broken("LogInv")
    /\ IF MoreThanOneLeaderInv' THEN TRUE ELSE Broken("MoreThanOneLeaderInv")
    /\ IF ElectionSafetyInv' THEN TRUE ELSE Broken("ElectionSafetyInv")
    /\ IF LogMatchingInv' THEN TRUE ELSE Broken("LogMatchingInv")
    /\ IF QuorumLogInv' THEN TRUE ELSE Broken("QuorumLogInv")
    /\ IF MoreUpToDateCorrectInv' THEN TRUE ELSE Broken("MoreUpToDateCorrectInv")
    /\ IF LeaderCompletenessInv' THEN TRUE ELSE Broken("LeaderCompletenessInv")
    /\ IF CommittedIsOnQuorumsDisksInv' THEN TRUE ELSE Broken("CommittedIsOnQuorumsDisksInv")
    \* A leader whose appends leave at once may learn that a quorum has an entry before its own disk does.
    /\ IF SendsAtOnce[trace] \/ CommittedIsDurableInv' THEN TRUE ELSE Broken("CommittedIsDurableInv")

Finish(e) ==
    /\ "state" \in DOMAIN e => StateIs(e.node, e.state)
    /\ Safe
    /\ position' = position + 1
    /\ UNCHANGED trace
    /\ IF position' > Len(Events)
       THEN PrintT(<<"accepted", trace>>)
       ELSE PrintT(<<"at", trace, position'>>)

(* etcdraft takes a message in over several steps: the term, the role, entry by entry what is to be
   cut off, the rest. The event is over when the message is consumed. *)
Take(e) ==
    /\ e.message \in DOMAIN messages
    /\ Receive(e.message)
    /\ IF CopiesIn(e.message, messages') = CopiesIn(e.message, messages)
       THEN Safe /\ UNCHANGED <<trace, position>>
       ELSE /\ IF "reply" \in DOMAIN e THEN Sent(e.reply) ELSE UNCHANGED pendingMessages
            /\ Finish(e)

TraceInit ==
    /\ trace \in DOMAIN Traces
    /\ position = 1
    /\ Init

TraceNext ==
    /\ position <= Len(Events)
    /\ IF Event.does = "Receive" THEN Take(Event) ELSE Act(Event) /\ Finish(Event)
=================================================================================
