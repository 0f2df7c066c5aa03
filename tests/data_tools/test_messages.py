"""Messages as data sets write them, and messages that are none."""

from typing import Any

import pytest

from data_tools.errors import RowError
from data_tools.messages import ROLES, plain_parts, read_messages, texts_in

USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
CALL = {"name": "f", "arguments": {"x": 1}}


def read(*raw: Any, roles: dict[str, str] = ROLES) -> list[Any]:
    return read_messages(list(raw), roles)[0]


@pytest.mark.parametrize(
    ("name", "role"),
    [
        *(
            ("human", "user"),
            ("gpt", "assistant"),
            ("client", "user"),
            ("counselor", "assistant"),
            ("prompter", "user"),
        ),
        *(("observation", "tool"), ("Human", "user"), ("GPT", "assistant"), ("developer", "developer")),
        *(("doctor", "assistant"), ("Doctor", "assistant")),
    ],
)
def test_roles_have_many_names(name: str, role: str) -> None:
    roles = {**ROLES, "doctor": "assistant"}
    assert read({"from": name, "value": "Hi"}, roles=roles) == [{"role": role, "content": "Hi"}]


def test_from_and_value_are_only_read_where_role_and_content_are_not() -> None:
    said = {"role": "user", "content": "Hi", "from": "the web", "value": 3}
    assert read(said) == [said]


@pytest.mark.parametrize(
    "content",
    [
        "Hello",
        ["Hel", "lo"],
        [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo", "image": None}],
        [{"text": "Hello"}],
        [{"type": None, "text": "Hello"}],
    ],
)
def test_content_is_text_or_parts_of_text(content: Any) -> None:
    assert read({"role": "assistant", "content": content}) == [ANSWER]


@pytest.mark.parametrize(
    "calls",
    [
        [CALL],
        CALL,
        '[{"name": "f", "arguments": {"x": 1}}]',
        [{"function": CALL}],
        [{"type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}],
    ],
)
def test_tool_calls_come_as_objects(calls: Any) -> None:
    expected = [{"type": "function", "function": CALL}]
    assert read({"role": "assistant", "tool_calls": calls}) == [{"role": "assistant", "tool_calls": expected}]


def test_a_function_call_is_an_assistants() -> None:
    (message,) = read({"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'})
    assert message == {"role": "assistant", "tool_calls": [{"type": "function", "function": CALL}]}


def test_arguments_that_are_text_stay_text() -> None:
    (message,) = read({"role": "assistant", "tool_calls": [{"name": "f", "arguments": "ls -l"}]})
    assert message["tool_calls"][0]["function"]["arguments"] == "ls -l"


@pytest.mark.parametrize("name", ["reasoning_content", "thinking"])
def test_reasoning_has_two_names(name: str) -> None:
    assert read({**ANSWER, name: "Hm."}) == [{**ANSWER, "reasoning_content": "Hm.", "thinking": "Hm."}]


@pytest.mark.parametrize(
    ("fields", "weight"),
    [
        ({"train": False}, 0),
        ({"weight": 0.5}, 0.5),
        ({"train": True, "weight": 2}, 2),
        ({"train": False, "weight": 2}, 0),
    ],
)
def test_weights_are_for_us_and_not_for_templates(fields: dict[str, Any], weight: float) -> None:
    messages, weights = read_messages([USER, {**ANSWER, **fields}], ROLES)
    assert (messages, weights) == ([USER, ANSWER], [1, weight])


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("Hi", "is not an object"),
        ({"role": "narrator", "content": "Hi"}, "unknown role 'narrator'; map it in the source's `roles`"),
        ({"role": 3, "content": "Hi"}, "has no role"),
        ({"role": "user", "content": [{"type": "image", "url": "x"}]}, "of type 'image' is not text"),
        ({"role": "user", "content": {"a": 1}}, "content is dict"),
        ({"role": "assistant", "tool_calls": []}, "no content"),
        ({"role": "assistant", "content": "", "tool_calls": 0}, "not a list of objects"),
        ({"role": "assistant", "tool_calls": "[" * 100_000}, "is not JSON"),
        ({"role": "assistant", "tool_calls": "1" * 5_000}, "is not JSON"),
        ({"role": "assistant", "tool_calls": ["f()"]}, "is not JSON"),
        ({"role": "assistant", "tool_calls": [{"function": "f"}]}, "not a list of objects"),
        ({"role": "function_call", "content": "f()"}, "is not JSON"),
        ({**ANSWER, "train": 1}, "`train` is 1"),
        ({**ANSWER, "weight": -1}, "`weight` is -1"),
        ({**ANSWER, "weight": float("inf")}, "`weight` is inf"),
        ({**ANSWER, "weight": float("nan")}, "`weight` is nan"),
    ],
)
def test_other_messages_are_refused_with_a_reason(message: Any, reason: str) -> None:
    with pytest.raises(RowError, match=reason):
        read(message)


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        *(("trian", "train"), ("Train", "train"), ("tran", "train"), ("wieght", "weight"), ("weigt", "weight")),
        *(
            ("weights", "weight"),
            ("tool_call", "tool_calls"),
            ("toolCalls", "tool_calls"),
            ("tool-calls", "tool_calls"),
        ),
        *(("reasonning_content", "reasoning_content"), ("thinkng", "thinking"), ("nmae", "name"), ("Name", "name")),
        *(("tool_call_di", "tool_call_id"), ("toolcall_id", "tool_call_id")),
    ],
)
def test_a_slip_of_the_pen_is_not_passed_over(key: str, meant: str) -> None:
    with pytest.raises(RowError, match=f"message 1 has {key!r}; did you mean `{meant}`"):
        read(USER, {**ANSWER, key: False})
    assert read(USER, {**ANSWER, key: None}) == [USER, ANSWER]  # as columnar files fill absent fields


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"role": "user", "contnet": "Hi"}, "did you mean `content`"),
        ({"role": "user", "Content": "Hi"}, "did you mean `content`"),
        ({"rol": "user", "content": "Hi"}, "did you mean `role`"),
        ({"form": "human", "value": "Hi"}, "did you mean `from`"),
        ({"from": "human", "vlaue": "Hi"}, "did you mean `value`"),
    ],
)
def test_slips_in_what_a_message_needs_are_told_as_such(message: Any, reason: str) -> None:
    with pytest.raises(RowError, match=reason):
        read(message)


@pytest.mark.parametrize(
    "key",
    ["context", "contents", "form", "roles", "game", "id", "turn", "reasoning", "score", "loss", "trained", "tools"],
)
def test_other_fields_are_handed_to_the_template(key: str) -> None:
    """Also those that differ by a letter from one that is there, so that they are no slip."""
    assert read(USER, {**ANSWER, key: "x"}) == [USER, {**ANSWER, key: "x"}]


def test_plain_parts_are_those_of_plain_messages_only() -> None:
    assert plain_parts([USER, ANSWER]) == (("user", "assistant"), ["Hi", "Hello"])
    for other in (
        {**ANSWER, "name": "x"},
        {"role": "assistant", "content": " \n"},
        {"role": "gpt", "content": "Hi"},
        "Hi",
    ):
        assert plain_parts([USER, other]) is None


def test_texts_are_found_everywhere() -> None:
    assert list(texts_in({"a": ["b", {"c": 1, "d": None}], "e": ("f",)})) == ["a", "b", "c", "d", "e", "f"]
