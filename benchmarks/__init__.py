"""What a call costs in CPU and memory, beside the loop one would write by hand and beside other clients.

``python -m benchmarks --help`` tells the options. The parts:

- `server`: a load server in its own process that answers with canned bytes;
- `clients`: the same few jobs written for each client; a new peer is one class there;
- `worker`: one client doing one job in a process of its own, measured;
- `rows`: the rows of the table, their bars, and how measurements become ratios;
- `__main__`: the interleaved rounds, the table, the JSON.
"""
