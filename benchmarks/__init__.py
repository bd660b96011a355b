"""What a call costs in CPU and memory, beside the loop one would write by hand and beside other clients.

``python -m benchmarks --help`` tells the options. The parts:

- `server`: a load server in its own process that answers with canned bytes;
- `clients`: the same few jobs written for each client; a new peer is one class there;
- `worker`: one client doing one job in a process of its own, measured;
- `rows`: the rows of the table, their bars, and how measurements become ratios;
- `rounds`: the workers taking turns;
- `options`: what the commands have in common, and the JSON;
- `__main__`: the table, on one loop or on both (``--loops``);
- `curves`: how cost grows, and the time to the first token (``python -m benchmarks.curves``);
- `picture`: the table's JSON as an SVG (``python -m benchmarks.picture``);
- `outage`: what callers notice of an outage, on a simulated clock (``python -m benchmarks.outage``).

The other clients are in the dependency group ``bench`` (``pip install -e '.[speed,test]' --group bench``); one that is
not installed is reported as such.
"""
