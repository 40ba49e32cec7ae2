-------------------------------- MODULE BagsExt --------------------------------
(* As SequencesExt: what etcdraft.tla takes from the community's module. *)
EXTENDS Bags, FiniteSets, FiniteSetsExt, Naturals

BagAdd(bag, element) == bag (+) SetToBag({element})

(* Op(... Op(Op(base, a), b) ..., z) over all copies of all elements, in whichever order. *)
FoldBag(Op(_, _), base, bag) ==
    LET RECURSIVE Fold(_, _)
        Fold(folded, rest) ==
            IF rest = EmptyBag
            THEN folded
            ELSE Only({Fold(step[1], step[2]) :
                       step \in {<<Op(folded, element), rest (-) SetToBag({element})>> :
                                 element \in {Only(DOMAIN rest)}}})
    IN Fold(base, bag)
================================================================================
