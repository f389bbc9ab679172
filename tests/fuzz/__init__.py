"""Fuzzing: what reads bytes from a network or a person is given everything, and held against a reader of its own."""
