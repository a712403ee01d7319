"""Each trace format from a few lines, and what a malformed line says."""

from pathlib import Path

import pytest

from sglang_cdsp.simulator.traces import TraceError, read_trace

MOONCAKE = """\
{"timestamp": 3500, "input_length": 6758, "output_length": 500, "hash_ids": [0, 1]}

{"timestamp": 3000, "input_length": 7322, "output_length": 490, "hash_ids": [0]}
"""
OWN = """\
{"rid": "b", "arrival_s": 2.5, "prompt_tokens": 6758, "output_tokens": 500}
{"arrival_s": 2, "prompt_tokens": 7322, "output_tokens": 490}
"""
AZURE = """\
TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 23:59:59.9799600,7322,490
2023-11-17 00:00:00.4799600,6758,500"""
SERVEGEN = """\
timestamp_s,input_tokens,output_tokens\r
0.5000,7322,490\r
1.0000,6758,500\r
"""


@pytest.mark.parametrize("text", [MOONCAKE, OWN, AZURE, SERVEGEN])
def test_formats_are_told_by_their_content(tmp_path: Path, text: str) -> None:
    trace = tmp_path / "trace"
    trace.write_bytes(text.encode())
    first, second = read_trace(trace)
    assert (first.arrival_s, first.prompt_tokens, first.output_tokens) == (0.0, 7322, 490)
    assert second.arrival_s == pytest.approx(0.5)
    assert (second.prompt_tokens, second.output_tokens) == (6758, 500)
    assert first.rid != second.rid


def test_no_output_counts_as_the_token_that_prefill_samples(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    trace.write_text("timestamp_s,input_tokens,output_tokens\n0,5,0\n")
    assert read_trace(trace)[0].output_tokens == 1


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("", "", "empty"),
        ("timestamp_s,input_tokens,output_tokens\n", "", "no request"),
        ("# Notes\n", "line 1", "no known trace format"),
        ('{"timestamp": 1, "input_length": 2}\n', "line 1", "no known trace format"),
        (MOONCAKE + "[1, 2]\n", "line 4", "not a JSON object"),
        (MOONCAKE + '{"timestamp": 0, "inp\n', "line 4", "not a JSON object"),
        (MOONCAKE + '{"timestamp": 0, "input_length": 3}\n', "line 4", "output_length is missing"),
        (OWN.replace("7322", "0"), "line 2", "prompt_tokens is 0, not an integer"),
        (OWN.replace("7322", "true"), "line 2", "prompt_tokens is True"),
        (OWN.replace("7322", "1e999"), "line 2", "prompt_tokens is inf"),
        (OWN.replace('"arrival_s": 2,', '"arrival_s": NaN,'), "line 2", "arrival_s is nan"),
        (OWN.replace('{"arrival_s"', '{"rid": "b", "arrival_s"'), "line 2", "'b' appears twice"),
        (AZURE.replace("2023-11-17", "yesterday"), "line 3", "TIMESTAMP is 'yesterday 00"),
        (AZURE.replace("6758", "6758.5"), "line 3", "ContextTokens is '6758.5'"),
        (SERVEGEN + "2.0,17\r\n", "line 4", "output_tokens is missing"),
        (SERVEGEN + "2.0,17,-1\r\n", "line 4", "output_tokens is '-1'"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_line(
    tmp_path: Path, text: str, where: str, what: str
) -> None:
    trace = tmp_path / "trace"
    trace.write_text(text)
    with pytest.raises(TraceError) as error:
        read_trace(trace)
    message = str(error.value)
    assert message.startswith(str(trace))
    assert where in message
    assert what in message
    assert "\n" not in message


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="No such file"):
        read_trace(tmp_path / "none")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TraceError, match="not UTF-8"):
        read_trace(tmp_path / "binary")
