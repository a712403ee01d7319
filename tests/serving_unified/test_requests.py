# ruff: noqa: F401 - tests that run here
"""Log-probabilities of the prompt, asked of one server, beside stock."""

from tests.serving.shared.prompt_logprobs import test_prompt_logprobs_across_pieces_and_chunks
