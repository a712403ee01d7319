"""The words around the tables."""

DRAWN = """\
# The paper's evaluation, simulated: LLaMA3-8B

`PYTHONPATH=. python -m bench.paper.run`

Set-up: 16 prefill instances (TP1) in nodes of 8, 2 decode instances (TP8), the Table I fit,
Poisson arrivals, {requests} requests a run, the first tenth left out of latencies.
`loongserve-unified` has the same 32 GPUs as 32 instances that do both. Prompt lengths are drawn (an
exponential cut to the paper's range, with its mean), output lengths too (1 to 2,000 tokens, mean
343: Mooncake's). Every policy with an improvement rate r runs at the one that gave it the least
mean TTFT at that arrival rate on one further seed; "with the regulator" it looks r up by itself in
the table of these while it runs. Ranges in brackets are the least and the greatest of the seeds: 3
for the sweeps, 5 at the critical rates. Same seed, same requests for all.

- *Maximum load*: where P50 or P99 of TTFT or TBT reaches 25 times its value at light load (each
  request alone, on its fastest group), interpolated between the rates of the sweep. It lies in
  saturation, where latency grows with the length of the run.
- *Critical rate* of a baseline: the highest, in steps of 0.05 req/s, at which its P50 TTFT is at
  most 5 times that at light load. The paper's best baseline is `fixed-sp:8`; ours is stronger for
  Short and Medium, see the end.

![P50 and P99 TTFT against the rate](paper-8b-rates.png)

![TTFT at fixed-sp:8's critical rate](paper-8b-cdf.png)

## Beside the paper

Short / Medium / Long at the critical rate of `fixed-sp:8`; above 1 ours is better."""

MAX_LOAD = "## Maximum load, requests/s, and against `fixed-sp:8`"

CRITICAL = """\
## At the critical rates

*Longest wait*: from arrival to the start of the first chunk, over all seeds."""

FIXED = """\
## Fixed improvement rates

Mean TTFT in seconds on the tuning seed; in bold what `tune` would store."""

WHY = """\
## Where this differs from the paper, and why
"""

TRACES = """\
# Traces, simulated

`PYTHONPATH=. python -m bench.paper.run --traces DIR`

The set-up of [paper-8b.md](paper-8b.md) under recorded arrivals and lengths: Mooncake's
conversation trace (FAST'25; prompts of 12,000 tokens on average, 3.4 requests/s at speed 1), alone
and mixed with ServeGen's `m-large` (4 requests/s of 355 tokens), everything replayed at the given
speed. Three parts of ten minutes stand for seeds, a fourth tunes the improvement rates. No prefix
is cached, though 37 % of Mooncake's blocks repeat.

![P50 and P99 TTFT against the speed](paper-traces-speeds.png)"""
