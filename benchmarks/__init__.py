"""What a call costs in CPU and memory, compared to a loop written by hand and to other clients.

The commands, each with ``--help``:

- ``python -m benchmarks``: the table, on one loop or on two (``--loops``);
- ``python -m benchmarks.curves``: how cost grows, and the time to the first token;
- ``python -m benchmarks.instructions``: how many instructions a call takes, counted by valgrind;
- ``python -m benchmarks.calls``: how many functions of the package a call runs through;
- ``python -m benchmarks.outage``: what callers notice of an outage, on a simulated clock;
- ``python -m benchmarks.picture``: the table as an SVG.

What they are made of:

- `server`: a load server in its own process that answers with canned bytes;
- `clients`: the same few jobs, written for each client; a new peer is one class there;
- `decoders`: decoders of server-sent events, ours and those of others;
- `worker`: one client that does one job in a process of its own, measured;
- `rows`: the rows of the table, what ours must reach, and how measurements become ratios;
- `rounds`: has the workers take turns;
- `options`: the options that the commands share, and the JSON report.

The other clients are in the dependency group ``bench`` (``pip install -e '.[speed,test]' --group bench``). The table
says "not installed" for those that are missing.
"""
