# ruff: noqa: F401 - fixtures and tests that run here
"""What clients ask of a pool with decode servers, asked of one server, beside stock."""

from __future__ import annotations

from tests.serving.shared.features import (
    plain,
    prompt,
    test_a_long_prompt_with_several_options,
    test_batch_of_ids,
    test_batch_of_texts_with_parameters_of_their_own,
    test_custom_logit_processor,
    test_option,
    test_output_logprobs,
    test_sampler,
    test_streaming,
    test_text,
    test_the_first_token_is_drawn,
    test_what_changes_no_answer,
)
