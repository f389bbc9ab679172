"""The bus's decisions: pure values and state machines, without a loop, a socket, a clock or randomness."""
