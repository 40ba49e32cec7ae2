"""The client side of a node, on real sockets, with one node's lock machine behind it."""
