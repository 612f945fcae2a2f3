"""Every model has an encoding, long texts are cut without harm, and the rule of thumb stays near the tokenizer."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy import tokenizers
from proxy.core import tokens
from proxy.core.tokens import CL100K, MAX_BATCH_CHARS, O200K, ApproximateCounter, batches, encoding_of, encodings_like

if TYPE_CHECKING:
    from collections.abc import Iterator

PROSE = """
The harbour had been quiet since the storm. Two fishing boats lay tied to the inner wall, their paint worn thin by salt,
and an old man in a yellow coat was mending a net on the steps below the customs house. He did not look up when the
ferry came in. He had seen it arrive every Thursday for thirty years, always a little late, always with the same tired
sound of its engine, and he knew without counting that fewer people would step off than had stepped on in the morning.
"You should sell the boat," his daughter had told him in the spring, and he had answered that nobody would buy it.
"""
CODE = '''
def merge(left: list[int], right: list[int]) -> list[int]:
    """Merge two sorted lists into one."""
    result = []
    i = j = 0
    while i < len(left) and j < len(right):
        if left[i] <= right[j]:
            result.append(left[i])
            i += 1
        else:
            result.append(right[j])
            j += 1
    return result + left[i:] + right[j:]


class Account:
    def __init__(self, owner: str, balance: float = 0.0) -> None:
        self.owner = owner
        self.balance = balance

    def withdraw(self, amount: float) -> None:
        if amount > self.balance:
            raise ValueError("insufficient funds")
        self.balance -= amount
'''
ORDER = {"id": 1042, "customer": {"name": "Ada Miller", "city": "Leeds"}, "paid": True, "total": 59.9, "note": None}
JSON = json.dumps([ORDER | {"items": [{"sku": "B-77", "quantity": 2, "price": 12.5}]}] * 4, indent=2)
GERMAN = """
Der Hafen war seit dem Sturm still. Zwei Fischerboote lagen an der inneren Mauer, ihre Farbe vom Salz ausgebleicht,
und ein alter Mann in einem gelben Mantel flickte auf den Stufen unter dem Zollhaus ein Netz. Er blickte nicht auf,
als die Fähre einlief. Seit dreißig Jahren hatte er sie jeden Donnerstag ankommen sehen, immer ein wenig verspätet,
immer mit demselben müden Geräusch der Maschine, und er wusste, ohne zu zählen, dass weniger Leute aussteigen
würden, als am Morgen eingestiegen waren. „Du solltest das Boot verkaufen“, hatte seine Tochter im Frühling gesagt.
"""
CHINESE = """
暴风雨过后，港口一直很安静。两条渔船系在内侧的石墙边，船身的油漆被海盐磨得很薄，一位穿黄色外套的老人坐在海关大楼下面的台阶上
补渔网。渡轮进港的时候，他没有抬头。三十年来，他每个星期四都看着它到达，总是晚一点，发动机总是发出同样疲倦的声音。他不用数也
知道，下船的人会比早上上船的人少。春天的时候，女儿对他说：“你应该把船卖掉。”他回答说，没有人会买的。现在他想，也许她说得对，
可是一个没有船的人，每天早晨应该到哪里去呢？
"""  # noqa: RUF001 - Chinese has commas of its own
RUSSIAN = """
После шторма в гавани было тихо. Две рыбацкие лодки стояли у внутренней стены, краска на них побледнела от соли, а
старик в жёлтом плаще чинил сеть на ступенях под зданием таможни. Он не поднял головы, когда пришёл паром. Тридцать
лет он видел, как тот приходит каждый четверг, всегда немного опаздывая, всегда с тем же усталым звуком двигателя,
и он знал не считая, что людей выйдет меньше, чем село утром. «Тебе надо продать лодку», — сказала ему дочь весной,
и он ответил, что никто её не купит.
"""  # noqa: RUF001 - Cyrillic is meant
EMOJI = "😀😂🎉 👍🚀✨ 🔥🙏😊 great 🤔💡🐍 ✅ 🎂🌍🎶 thanks! 😅🙈🍕 " * 5
SAMPLES = {"prose": PROSE, "code": CODE, "json": JSON, "de": GERMAN, "zh": CHINESE, "ru": RUSSIAN, "emoji": EMOJI}

# what the rule may be off, and is shown here not to be
BOUND = 0.2


@pytest.fixture(scope="module")
def exact() -> tokens.TokenCounter:
    assert tokenizers.installed(), "the tests need the extra `tokenizers`"
    return tokenizers.load([O200K, CL100K])


@pytest.mark.parametrize(
    ("model", "encoding"),
    [
        ("gpt-4o", O200K),
        ("gpt-4o-mini-2024-07-18", O200K),
        ("chatgpt-4o-latest", O200K),
        ("gpt-4.1-nano", O200K),
        ("gpt-4.5-preview", O200K),
        ("gpt-5.2-codex", O200K),
        ("o1", O200K),
        ("o3-mini", O200K),
        ("o4-mini", O200K),
        ("ft:gpt-4o:acme::7p4lURel", O200K),
        ("gpt-oss-120b", O200K),
        ("gpt-4", CL100K),
        ("gpt-4-turbo", CL100K),
        ("gpt-4-32k-0613", CL100K),
        ("gpt-3.5-turbo", CL100K),
        ("gpt-35-turbo-16k", CL100K),
        ("ft:gpt-3.5-turbo-0125:acme::abc", CL100K),
        ("text-embedding-ada-002", CL100K),
        ("text-embedding-3-large", CL100K),
        ("davinci-002", CL100K),
        ("babbage-002", CL100K),
        ("openai/gpt-4o", O200K),
        ("openrouter/openai/gpt-4-turbo", CL100K),
        ("OpenAI/GPT-4", CL100K),
        ("claude-sonnet-4", O200K),
        ("meta-llama/Llama-3-70b", O200K),
        ("my-gpt-4", O200K),
        ("gpt-6", O200K),
        ("", O200K),
    ],
)
def test_a_model_has_its_encoding(model: str, encoding: str) -> None:
    assert encoding_of(model) == encoding


@pytest.mark.parametrize(
    ("pattern", "encodings"),
    [
        ("gpt-4", {CL100K}),
        ("gpt-4o", {O200K}),
        ("*", {O200K, CL100K}),
        ("openai/*", {O200K, CL100K}),
        ("gpt-*", {O200K, CL100K}),
        ("gpt-4*", {O200K, CL100K}),
        ("gpt-4?", {O200K, CL100K}),
        ("gpt-4o*", {O200K}),
        ("gpt-4-*", {CL100K}),
        ("OpenAI/ft:gpt-3.5*", {CL100K}),
        ("f*", {O200K, CL100K}),
        ("text-embedding-3-*", {CL100K}),
        ("llama*", {O200K}),
        ("mock*", {O200K}),
    ],
)
def test_a_pattern_has_the_encodings_of_what_it_may_match(pattern: str, encodings: set[str]) -> None:
    assert encodings_like(pattern) == encodings


@given(
    st.sampled_from(["", "openai/", "ft:", "a/ft:"]),
    st.sampled_from(
        ["gpt-4o-mini", "gpt-4-turbo", "gpt-4.1", "gpt-3.5-turbo", "text-embedding-ada-002", "gpt-35", "o1"]
    )
    | st.sampled_from(["text-embedding-3-small", "davinci-002", "babbage-002", "ft:gpt-4", "chatgpt-4o-latest"]),
    st.text("gpt-45.3o", max_size=4),
    st.integers(0, 30),
    st.sampled_from("*?"),
)
def test_no_encoding_of_a_matching_name_is_missed(vendor: str, model: str, more: str, cut: int, wildcard: str) -> None:
    """Wherever a name that goes on in any way is replaced by a wildcard."""
    assert encoding_of(vendor + model + more) in encodings_like((vendor + (model + more)[:cut]) + wildcard)


@pytest.mark.parametrize("encoding", [O200K, CL100K])
@pytest.mark.parametrize("kind", SAMPLES)
def test_the_rule_of_thumb_is_near(kind: str, encoding: str, exact: tokens.TokenCounter) -> None:
    counted = exact.count([SAMPLES[kind]], encoding)
    assert counted > 100
    approximate = ApproximateCounter().count([SAMPLES[kind]], encoding)
    assert approximate == pytest.approx(counted, rel=BOUND)


def test_the_rule_of_thumb_tells_encodings_apart() -> None:
    counter = ApproximateCounter()
    assert counter.count([RUSSIAN], CL100K) > 1.4 * counter.count([RUSSIAN], O200K)


@pytest.mark.parametrize("texts", [[], [""], ["", ""], ["  "]])
def test_nothing_is_no_tokens(texts: list[str]) -> None:
    assert ApproximateCounter().count(texts, O200K) == 0


@given(st.lists(st.text(st.characters(), max_size=20), max_size=5))
def test_the_rule_of_thumb_takes_any_text(texts: list[str]) -> None:
    """Halves of surrogate pairs among them, and every encoding."""
    assert ApproximateCounter().count([*texts, "\ud83d", "<|endoftext|>"], "whatever") > 0


def test_many_texts_count_about_as_one() -> None:
    words = PROSE.split()
    apart, whole = ApproximateCounter().count(words, O200K), ApproximateCounter().count([PROSE], O200K)
    assert apart == pytest.approx(whole, rel=0.05)


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    with monkeypatch.context() as patched:
        patched.setattr(tokens, "MAX_BATCH_CHARS", 50)
        patched.setattr(tokens, "_CUT_WITHIN_CHARS", 10)
        yield 50


@pytest.mark.usefixtures("small_batches")
def test_batches_hold_every_character_in_order() -> None:
    @given(st.lists(st.text("ab \n", max_size=300), max_size=10))
    def check(texts: list[str]) -> None:
        made = list(batches(texts))
        assert all(sum(map(len, batch)) <= 50 for batch in made)
        assert "".join("".join(batch) for batch in made) == "".join(texts)
        # what fits is not cut
        assert {text for text in texts if len(text) <= 50} <= {text for batch in made for text in batch}

    check()


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("x" * 46 + " word word", ["x" * 46, " word word"]),
        ("x" * 45 + "\nword word", ["x" * 45 + "\nword", " word"]),
        ("x" * 46 + "\nword word", ["x" * 46, "\nword word"]),
        ("x" * 45 + "\nwordword", ["x" * 45, "\nwordword"]),
        ("a " + "x" * 58, ["a " + "x" * 48, "x" * 10]),
        ("x" * 120, ["x" * 50, "x" * 50, "x" * 20]),
        (" " * 51, [" " * 50, " "]),
    ],
)
def test_a_long_text_is_cut_before_whitespace(text: str, parts: list[str]) -> None:
    assert [part for batch in batches([text]) for part in batch] == parts


def test_batches_of_tiny_texts_end_too() -> None:
    assert max(map(len, batches([""] * 100_000))) <= MAX_BATCH_CHARS // 16 + 1


def test_batches_are_made_when_they_are_asked_for() -> None:
    made = batches(["x" * MAX_BATCH_CHARS * 3])
    assert next(made) == ["x" * MAX_BATCH_CHARS]


UNBROKEN = "".join(filter(str.isalpha, PROSE))


@pytest.mark.parametrize("encoding", [O200K, CL100K])
@pytest.mark.parametrize(
    ("text", "tokens_a_cut"), [(text, 1) for text in SAMPLES.values()] + [(UNBROKEN, 4)], ids=[*SAMPLES, "unbroken"]
)
def test_a_cut_costs_a_token_at_most(
    text: str, tokens_a_cut: int, encoding: str, exact: tokens.TokenCounter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the text begins, so that the cut falls on many places."""
    for offset in range(0, 200, 7):
        long = text[offset:] + text * (2 * MAX_BATCH_CHARS // len(text))
        cut = exact.count([long], encoding)
        with monkeypatch.context() as patched:
            patched.setattr(tokens, "MAX_BATCH_CHARS", len(long))
            whole = exact.count([long], encoding)
        assert abs(cut - whole) <= 2 * tokens_a_cut
