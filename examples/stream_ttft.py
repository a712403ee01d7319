"""Send one long and some short prompts at once with the OpenAI client and print each one's TTFT.

The short ones do not wait until the long one is through: it starts on idle instances and leaves
others free.
"""

from __future__ import annotations

import argparse
import asyncio
import pydoc_data.topics
import time

import openai


async def first_token_s(client: openai.AsyncOpenAI, model: str, prompt: str, tokens: int) -> float:
    """Seconds from sending ``prompt`` to its first streamed token; reads the answer to its end."""
    sent = time.perf_counter()
    found = None
    stream = await client.completions.create(
        model=model, prompt=prompt, max_tokens=tokens, temperature=0, stream=True
    )
    async for event in stream:
        if found is None and event.choices and event.choices[0].text:
            found = time.perf_counter() - sent
    return time.perf_counter() - sent if found is None else found


async def measure(url: str, long: int, short: int, tokens: int) -> None:
    """Send the prompts, ``long`` and ``short`` characters of text, and print a line for each."""
    text = "\n\n".join(pydoc_data.topics.topics.values())
    prompts = [text[:long], *(text[start : start + short] for start in range(0, 4 * short, short))]
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
        model = (await client.models.list()).data[0].id
        times = await asyncio.gather(
            *(first_token_s(client, model, prompt, tokens) for prompt in prompts)
        )
    for prompt, seconds in zip(prompts, times, strict=True):
        print(f"{len(prompt):8d} characters: first token after {seconds:.3f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:30000", help="the router")
    parser.add_argument("--long", type=int, default=20_000, help="characters of the long prompt")
    parser.add_argument("--short", type=int, default=400, help="characters of each short prompt")
    parser.add_argument("--tokens", type=int, default=16, help="of each answer (16)")
    options = parser.parse_args()
    asyncio.run(measure(options.url, options.long, options.short, options.tokens))


if __name__ == "__main__":
    main()
