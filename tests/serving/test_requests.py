# ruff: noqa: F401 - tests that run here
"""Log-probabilities of the prompt, before decode servers."""

from tests.serving.shared.prompt_logprobs import test_prompt_logprobs_across_pieces_and_chunks
