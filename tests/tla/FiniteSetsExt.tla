----------------------------- MODULE FiniteSetsExt -----------------------------
(* As SequencesExt: what etcdraft.tla takes from the community's module. *)
EXTENDS Naturals

(* The element of a set of one. To bind something as the element of such a set has TLC evaluate
   it once; an operator's argument, or a LET, it evaluates in an action again at each use. *)
Only(set) == CHOOSE x \in set : TRUE

Max(set) == Only({(CHOOSE x \in once : \A y \in once : x >= y) : once \in {set}})

Min(set) == Only({(CHOOSE x \in once : \A y \in once : x <= y) : once \in {set}})
================================================================================
