# ruff: noqa: F401 - fixtures and tests that run here
"""OpenAI's completions and chat, before decode servers."""

from tests.serving.shared.features_openai import (
    lengths,
    test_chat,
    test_completions,
    test_completions_of_several_prompts,
    test_completions_of_token_ids,
)
