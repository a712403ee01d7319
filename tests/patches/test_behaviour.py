"""What each patch changes, shown on the installed SGLang and on a patched copy.

Every test states the defect on the installed wheel too: once a pinned release has the fix, its
test fails and the patch and its hook can go.
"""

from typing import Any

import pytest

Answers = dict[str, dict[str, Any]]


def test_0001_replicas_use_their_own_rank(answers: Answers) -> None:
    wheel, patched = answers["wheel"]["dp_rank"], answers["patched"]["dp_rank"]
    right = {"chosen": ["bootstraps"] * 4, "other": ["failed"] * 4}
    assert patched == {"replicas": right, "attention": right, "registered": [True, True]}
    # Every replica takes itself for number 0.
    assert wheel["replicas"]["chosen"] == ["bootstraps", "failed"] * 2
    assert wheel["replicas"]["other"] == wheel["replicas"]["chosen"]
    assert wheel["registered"] == [True, False]
    assert wheel["attention"] == right


def test_0002_memory_kind_follows_the_pool(answers: Answers) -> None:
    wheel, patched = answers["wheel"]["memory_kind"], answers["patched"]["memory_kind"]
    right = {"cpu": ["DRAM"] * 6, "cuda:0": ["VRAM"] * 6}
    assert patched == {"prefill": right, "decode": right}
    wrong = {"cpu": ["VRAM"] * 6, "cuda:0": ["VRAM"] * 6}
    assert wheel == {"prefill": wrong, "decode": wrong}


def rooms(sent: list[list[Any]]) -> list[int]:
    return [room for _, room, _ in sent]


def test_0003_every_sample_has_a_room(answers: Answers) -> None:
    found = answers["patched"]["sample_rooms"]
    for case, prompts, samples, own_rooms in (
        ("one", [[1, 2, 3]], 3, [2**63 - 1]),
        ("batch", [[1, 2, 3], [4, 5, 6]], 2, [40, 41]),
    ):
        sent = found[case]["prefill"]
        assert found[case]["decode"] == sent
        assert [prompt for prompt, _, _ in sent] == [p for p in prompts for _ in range(samples)]
        assert all(tokens == 4 for _, _, tokens in sent)
        assert len(set(rooms(sent))) == len(sent)
        assert all(0 <= room < 2**63 for room in rooms(sent))
        assert rooms(sent)[::samples] == own_rooms
    assert found["rids"] == found["batch"]["prefill"]


def test_0003_rooms_stay_away_from_a_sequence(answers: Answers) -> None:
    """Requests that got 42, 43, ... next to the batch of 40 and 41 must not meet its samples."""
    derived = set(rooms(answers["patched"]["sample_rooms"]["batch"]["prefill"])) - {40, 41}
    assert min(abs(room - 41) for room in derived) > 2**32


def test_0003_one_room_for_all_samples_before(answers: Answers) -> None:
    found = answers["wheel"]["sample_rooms"]
    assert set(rooms(found["one"]["prefill"])) == {2**63 - 1}
    assert set(rooms(found["batch"]["decode"])) == {40, 41}


def test_0003_leaves_other_requests_alone(answers: Answers) -> None:
    wheel, patched = answers["wheel"]["sample_rooms"], answers["patched"]["sample_rooms"]
    assert patched["single_rooms"] == wheel["single_rooms"] == [2**63 - 1, [40, 41], [9, 10]]
    # Without disaggregation the prefix is still computed once, by a request without output.
    prompt = [1, 2, 3]
    assert patched["unified"] == wheel["unified"]
    assert patched["unified"] == [[prompt, None, tokens] for tokens in (0, 4, 4)]


def test_0004_plugins_reach_the_controller(answers: Answers) -> None:
    assert answers["patched"]["controller"] == {"replaced": [True]}
    assert answers["wheel"]["controller"] == {"replaced": [False]}


def test_0005_idle_controller_waits(answers: Answers) -> None:
    wheel, patched = (answers[tree]["idle"]["controller"] for tree in ("wheel", "patched"))
    # One wait for each look that found nothing; the last one is cut short by the probe.
    assert patched["waits"] == patched["looks"] + 1
    assert patched["timeouts"] == [100]
    assert wheel["looks"] > 0
    assert wheel["waits"] == 0
    assert wheel["dispatched"] == patched["dispatched"] == ["request"]


def test_0006_sleep_on_idle_covers_stalls_and_pauses(answers: Answers) -> None:
    wheel, patched = (answers[tree]["idle"] for tree in ("wheel", "patched"))
    spins: dict[str, list[int]] = {"flag": [], "no flag": []}
    assert patched["stalled"] == patched["stalled rust"] == {"flag": [1], "no flag": []}
    assert patched["paused"] == {"flag": [1000], "no flag": []}
    assert wheel["stalled"] == wheel["stalled rust"] == wheel["paused"] == spins


def test_0007_several_holders_send_one_request(answers: Answers) -> None:
    wheel, patched = answers["wheel"]["holders"], answers["patched"]["holders"]
    assert patched["holders"] == {
        "decode counts it as done": True,
        "bytes are right": True,
        "both see success": True,
        "both drop the room": True,
    }
    # Decode's side fits as it is; the holder that is not home is never told the end.
    assert wheel["holders"] == {
        "decode counts it as done": True,
        "bytes are right": True,
        "both see success": False,
        "both drop the room": False,
    }


def test_0007_one_sender_is_as_before(answers: Answers) -> None:
    wheel, patched = answers["wheel"]["holders"], answers["patched"]["holders"]
    assert patched["one"] == wheel["one"]
    assert all(patched["one"].values())


def test_0007_refuses_scattered_pages_where_they_cannot_work(answers: Answers) -> None:
    assert "need consecutive pages" in answers["patched"]["holders"]["refused"]


def test_0008_refuses_what_would_be_stuck(answers: Answers) -> None:
    wheel, patched = answers["wheel"]["admission"], answers["patched"]["admission"]
    cases = {**wheel["forms"], "cached prefix": wheel["cached prefix"]}
    for name, before in cases.items():
        after = {**patched["forms"], "cached prefix": patched["cached prefix"]}[name]
        # Not one prompt less is admitted, none is stuck any more.
        assert after == {
            "admitted": before["admitted"],
            "refused": [before["stuck"][0], before["refused"][1]],
        }, name
    assert patched["nothing reserved"] == wheel["nothing reserved"]
    assert set(wheel["nothing reserved"]) == {"admitted", "refused"}


def test_0008_limits(answers: Answers) -> None:
    """256 tokens of KV in pages of 8, 60 reserved; HiSparse has twice as many."""
    longest = {
        "tokens": 196,
        "pages": 196,
        "radix tokens": 196,
        "radix pages": 192,  # admission with the radix cache counts whole pages
        "hisparse": 452,
        "sliding window": 196,
        "lent": 196,
    }
    found = answers["patched"]["admission"]
    assert {name: form["admitted"][1] for name, form in found["forms"].items()} == longest
    assert found["cached prefix"]["admitted"] == [1, 192]
    for text in ("197 input tokens", "60 reserved", "decode has 256", "--max-total-tokens"):
        assert text in found["message"]
    assert "--num-reserved-decode-tokens" in found["message"]


def test_0008_the_queue_goes_on(answers: Answers) -> None:
    wheel, patched = answers["wheel"]["admission"], answers["patched"]["admission"]
    assert (wheel["behind"], patched["behind"]) == (False, True)
    # What was admitted once and has grown over the limit is not refused.
    assert patched["grown"] == wheel["grown"]
    assert patched["grown"] == {"is_retracted": "waits", "is_rebootstrap": "waits"}


def test_0009_prefill_hears_of_refusals(answers: Answers) -> None:
    wheel, patched = answers["wheel"]["refusals"], answers["patched"]["refusals"]
    assert list(patched) == list(wheel) == ["nixl", "mooncake", "mori"]
    told = ("too long", "rejected", "too long, early")
    untold = (
        "aborted, early",
        "long ago",
        "retracted",
        "bootstraps again",
        "room in use",
        "fake",
    )
    for backend, found in patched.items():
        waits = {**dict.fromkeys((*told, *untold), "waits"), "kept": 0}
        assert wheel[backend] == waits
        assert found == {**waits, **dict.fromkeys(told, "failed")}


def test_0010_extend_computes_new_queries_only(answers: Answers) -> None:
    wheel, patched = (answers[tree]["torch_attention"] for tree in ("wheel", "patched"))
    rows = {name: (wheel[name]["rows"], case["rows"]) for name, case in patched.items()}
    assert rows == {
        "chunk": (1470, 70),
        "long chunk": (2500, 1200),
        "requests": (971, 71),
        "short prefix": (230, 230),  # a mask would cost more than the prefix's rows
        "no prefix": (100, 100),
        "window": (740, 40),
        "encoder": (30, 10),
    }


def test_0010_gives_what_it_gave(answers: Answers) -> None:
    wheel, patched = (answers[tree]["torch_attention"] for tree in ("wheel", "patched"))
    for name, case in patched.items():
        assert case["output"] == pytest.approx(wheel[name]["output"], abs=1e-6), name


FAILED = [500, {"error": {"message": "Decode transfer failed", "code": 500}}]
REFUSED = [400, {"error": {"message": "n=2", "code": 400}}]


def ends(events: list[dict[str, Any]]) -> list[Any]:
    """Statuses with which the events of a stream end requests, None for other events."""
    reasons = [
        event.get("error") or event.get("meta_info", {}).get("finish_reason") or {}
        for event in events
    ]
    return [reason.get("code") or reason.get("status_code") for reason in reasons]


def test_0011_the_router_returns_what_a_server_refuses(answers: Answers) -> None:
    wheel, patched = answers["wheel"]["mini_router"], answers["patched"]["mini_router"]
    for case, before, now in (
        ("refused", "waits", REFUSED),
        ("refused after decode failed", FAILED, REFUSED),
        ("full", FAILED, [503, {"detail": "the queue is full"}]),
        ("refused by decode", "waits", REFUSED),
    ):
        assert (wheel[case], patched[case]) == (before, now), case


def test_0011_refusals_within_a_stream(answers: Answers) -> None:
    wheel, patched = answers["wheel"]["mini_router"], answers["patched"]["mini_router"]
    for case in ("stream refused", "stream refused later", "stream with an error"):
        assert (ends(wheel[case]), ends(patched[case])) == ([500], [400]), case
    assert wheel["stream refused at once"] == "waits"
    assert wheel["stream of scores refused"].startswith("breaks")
    for case in ("stream refused at once", "stream of scores refused"):
        assert ends(patched[case]) == [400], case
    assert (ends(wheel["one of a batch"]), ends(patched["one of a batch"])) == (
        [500, None],
        [400, None],
    )


def test_0011_whatever_is_not_refused_is_as_before(answers: Answers) -> None:
    wheel, patched = answers["wheel"]["mini_router"], answers["patched"]["mini_router"]
    served = ("served", "stream served", "scores", "stream of scores")
    for case in ("decode fails", "both fail", "stream fails at decode", *served):
        assert patched[case] == wheel[case], case
    assert wheel["decode fails"] == wheel["both fail"] == FAILED
    assert wheel["served"] == [200, {"text": "one"}]
    assert wheel["stream served"] == [{"text": "one"}, {"a": 1}]


def scored(answer: dict[str, Any]) -> str:
    """The words of the prompt that have log-probabilities."""
    return "".join(word for _, _, word in answer["meta_info"]["input_token_logprobs"])


def test_0012_log_probabilities_of_every_prompt_of_a_batch(answers: Answers) -> None:
    wheel, patched = answers["wheel"]["mini_router"], answers["patched"]["mini_router"]
    batch, events = "scores of a batch", "stream of scores of a batch"
    assert list(map(scored, wheel[batch][1])) == ["", ""]
    assert list(map(scored, patched[batch][1])) == ["ab", "c"]
    # The events come in the order of decode's, and all were given the scores of the first prompt.
    assert [(event["index"], scored(event)) for event in wheel[events]] == [(1, "ab"), (0, "ab")]
    assert [(event["index"], scored(event)) for event in patched[events]] == [(1, "c"), (0, "ab")]
    assert scored(wheel["scores"][1]) == scored(patched["scores"][1]) == "ab"


def test_0013_a_bootstrap_server_without_its_port_is_no_server(answers: Answers) -> None:
    wheel, patched = answers["wheel"]["bootstrap_port"], answers["patched"]["bootstrap_port"]
    assert wheel == {
        "said": "",
        "names port": False,
        "first goes on": True,
        "free afterwards": True,
    }
    assert "--disaggregation-bootstrap-port" in patched["said"]
    assert patched == {**wheel, "said": patched["said"], "names port": True}


def test_0014_decode_answers_with_the_status_that_prefill_names(answers: Answers) -> None:
    wheel, patched = answers["wheel"]["refusal_status"], answers["patched"]["refusal_status"]
    assert list(patched) == list(wheel) == ["nixl", "mooncake"]
    before = {"ends": [500, 500], "reason": True}
    for engine, found in patched.items():
        assert wheel[engine] == dict.fromkeys(found, before)
        assert found == {
            "400": {**before, "ends": [400, 400]},
            "503": {**before, "ends": [503, 503]},
            **dict.fromkeys(("no frame", "200", "no number"), before),
        }


def test_0015_expert_recording_needs_a_recorder(answers: Answers) -> None:
    wheel, patched = answers["wheel"]["recorder"], answers["patched"]["recorder"]
    asked = {name: [200, 1] for name in ("start", "stop", "dump")}
    refused = {name: [400, 0] for name in asked}
    assert patched == {"without": refused, "with": asked}
    assert wheel == {"without": asked, "with": asked}, "the schedulers end by it"
