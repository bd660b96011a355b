"""Deterministic simulation: the real client, `map` and `run_batch` in virtual time, against providers by a script.

One seed is one history. `history` draws it, `loop` has the time and the cancellations, `provider` answers and bills,
`world` lets it happen, `invariants` says what must hold after it, `search` runs many and shortens one that fails.
"""
