"""Send a prompt together with its plan: which instances prefill which part of it.

The prefill server needs ``--cdsp-allow-request-plans``, as the one of ``make serve`` has it. By
default 4,096 tokens run on instance 0 and the next 4,096 on instances 0 and 1.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

import requests


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:30000", help="the router")
    parser.add_argument(
        "--plan",
        type=json.loads,
        default=[[4096, [0]], [4096, [0, 1]]],
        help="[[tokens, [instance, ...]], ...] as JSON; each group begins with the one before",
    )
    parser.add_argument("--tokens", type=int, default=8, help="of the answer (8)")
    options = parser.parse_args()
    prompt = [10 + position % 1000 for position in range(sum(n for n, _ in options.plan))]
    body: dict[str, Any] = {
        "input_ids": prompt,
        "sampling_params": {
            "max_new_tokens": options.tokens,
            "temperature": 0,
            "custom_params": {"cdsp_plan": options.plan},
        },
    }
    sent = time.perf_counter()
    answer = requests.post(f"{options.url}/generate", json=body, timeout=600)
    took = time.perf_counter() - sent
    if answer.status_code != requests.codes.ok:
        print(f"refused with {answer.status_code}: {answer.text}", file=sys.stderr)
        return 1
    found = answer.json()
    print(f"{found['meta_info']['prompt_tokens']} tokens prefilled as {options.plan}")
    print(f"{found['output_ids']} after {took:.2f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
