"""The words around the tables."""

DRAWN = """\
# The paper's evaluation, simulated: LLaMA3-8B

`python -m bench.paper.run --out bench/results`

Set-up: 16 prefill instances (TP1) in nodes of 8, 2 decode instances (TP8), the Table I fit,
Poisson arrivals, {requests} requests a run, the first tenth left out of latencies.
`loongserve-unified` has the same 32 GPUs as 32 instances that do both. Prompt lengths are drawn (an
exponential cut to the paper's range, with its mean), output lengths too (1 to 2,000 tokens, mean
343: Mooncake's). Every policy with an improvement rate r runs at the one that gave it the least
mean TTFT at that arrival rate on one further seed; "with the regulator" it looks r up by itself in
the table of these while it runs. Ranges in brackets are the least and the greatest of the seeds: 3
for the sweeps, 5 at the critical rates. Same seed, same requests for all. `cdsp-late` runs with
`--cdsp-preempt-budget` {budget:g}, so that no prompt passes another, as in the paper's system; the
server's default is {default:g}, and [preempt.md](preempt.md) has both.

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

NOT_TOLD = """\
`-` and "above": the sweep does not tell. In so short a run no queue grows as long as the limit;
give more `--requests`."""

MAX_LOAD = "## Maximum load, requests/s, and against `fixed-sp:8`"

CRITICAL = """\
## At the critical rates

*Longest wait*: from arrival to the start of the first chunk, over all seeds."""

FIXED = """\
## Fixed improvement rates

Mean TTFT in seconds on the tuning seed; in bold what `tune` would store."""

WHY = """\
## Where this differs from the paper, and why

- *The critical rate decides the ratios.* Over `fixed-sp:8` they climb within 15 % of rate from
  nothing to many times, because one curve bends before the other (all rates below). The paper does
  not say where on the bend it stands; 5 times light load is our reading. For Long it is early.
- *Lengths and arrivals are drawn.* The paper replays production traces, whose bursts and tails we
  do not have. Table I has no history either: c = 2 d in Equation 1 is our assumption.
- *Our `loongserve` is stronger than the paper's*, which comes out behind `fixed-sp:8`. Ours takes
  whatever is idle at once, in groups of 2 or 4 if that is all, so it narrows by itself as load
  grows; and a simulator charges nothing for forming groups. For Short and Medium it is the best
  baseline and close to `cdsp-paper`; for Long, where good groups are wide, it is behind.
- *`loongserve-unified`* decodes each request where it was prefilled. Its P50 TBT comes out as in
  the paper; its P99 TBT and P99 TTFT are worse, because nothing is batched or moved: a long prompt
  finds few instances that do not decode. Its P50 TTFT for Long is the best of all below
  saturation: prefill has up to 32 instances instead of 16.
- *`fixed-sp:16`* is saturated everywhere but at the lowest rates of Long: Table I's 0.39 s floor at
  SP 16 allows fewer than 2 requests/s, however short. The paper's throughput factors up to 3.38
  may come from such a baseline; where nobody is saturated, throughput is the arrival rate.
- *Single chunk*: the paper loses a factor of 2.3 to 4.2 without chunking. Here the loss is 0 to
  20 % when both have their best improvement rate, and up to 1.7 times at the same low one (fixed
  rates, above): a higher rate leaves little for chunks to fill in. Our `cdsp`, which chunks over
  the whole pool, gains more from it than Algorithm 1.
- *Improvement rates*: as in the paper low ones suit light load and high ones heavy load, and no
  fixed rate suits both. In saturation they still matter here; to `cdsp-late` they hardly ever do.
  One tuning seed chooses between near equals, which costs some points up to 10 % (`cdsp-paper` at
  the critical rate of Medium). The regulator sees the arrivals of 30 s and hops between entries:
  P50 is within 20 % of the best fixed rate, but at the bend, where the next entry is already that
  of saturation, P99 can be half as much again (`cdsp`, Medium at 3.1). `cdsp-late` does not mind.
- *Maximum load* lies in saturation, where it says how fast a queue grows over these runs rather
  than what a pool bears; Short gains most, because `fixed-sp:8` spends 0.17 s on every prompt
  before its length counts.
"""

TRACES = """\
# Traces, simulated

`python -m bench.paper.run --traces DIR --out bench/results`

The set-up of [paper-8b.md](paper-8b.md) under recorded arrivals and lengths: Mooncake's
conversation trace (FAST'25; prompts of 12,000 tokens on average, 3.4 requests/s at speed 1), alone
and mixed with ServeGen's `m-large` (4 requests/s of 355 tokens), everything replayed at the given
speed. Three parts of ten minutes stand for seeds, a fourth tunes the improvement rates. No prefix
is cached, though 37 % of Mooncake's blocks repeat. `--cdsp-preempt-budget` is {budget:g}, too.

![P50 and P99 TTFT against the speed](paper-traces-speeds.png)"""

SHOWN = """\
## What it shows

Real traffic is mostly short, so a policy is judged by what it keeps from standing behind long
prompts. Binding at arrival, `cdsp-paper`, `cdsp`, `single-chunk` and `loongserve` are within some
10 to 20 % of each other at P50: most prompts need one chunk on few instances, and there is nothing
to chunk. `cdsp` buys its lower P99 with a little P50 in the mix. Static groups of 8 are hopeless
for prompts this short. `cdsp-late` lets short prompts pass long ones and is well ahead of all of
them at P50, 1.6 to 3.7 times ahead of `cdsp-paper`, with P99 the same or lower; but on Mooncake
alone at speed 1, where hardly anyone waits, its narrower groups cost a third at P99."""
