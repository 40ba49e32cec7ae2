----------------------------- MODULE SequencesExt -----------------------------
(* What etcdraft.tla takes from the community's module of this name, written anew from
   what it says of each: so that nothing but TLC itself is needed. *)
EXTENDS Naturals, Sequences, FiniteSetsExt

IsPrefix(short, long) ==
    Len(short) <= Len(long) /\ SubSeq(long, 1, Len(short)) = short

(* The last index between from and to of an element that passes the test; 0 when none does. *)
SelectLastInSubSeq(seq, from, to, Test(_)) ==
    Max({0} \union {k \in from..to : Test(seq[k])})
===============================================================================
