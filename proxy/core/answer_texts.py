"""The output text of an answer, gathered for counting: one text for each voice in it.

Choices, kinds and tool calls interleave in a stream; joined as they come they would tokenise as no model wrote them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from proxy.core.discreet import Discreet
from proxy.core.tokens import cut

if TYPE_CHECKING:
    from proxy.core.answer_events import Choice, Function, Message, Said

# So many texts are kept apart; an answer has no more, and what an upstream invents beyond it becomes one text.
MAX_TEXTS: Final = 256

_TEXT_DELTAS: Final = frozenset(
    {
        "response.output_text.delta",
        "response.refusal.delta",
        "response.function_call_arguments.delta",
        "response.reasoning_text.delta",
        "response.reasoning_summary_text.delta",
        "response.custom_tool_call_input.delta",
        "response.mcp_call_arguments.delta",
        "response.code_interpreter_call_code.delta",
        "response.audio.transcript.delta",
        "response.output_audio_transcript.delta",
        "transcript.text.delta",
    }
)
_SOUND_OR_IMAGE: Final = frozenset(
    {
        "response.audio.delta",
        "response.output_audio.delta",
        "response.image_generation_call.partial_image",
        "speech.audio.delta",
        "image_generation.partial_image",
        "image_generation.completed",
        "image_edit.partial_image",
        "image_edit.completed",
    }
)
_ITEM_STRINGS: Final = ("name", "arguments", "input", "code")

# choice or output item, kind, and which one of the kind
_Voice = tuple[int, str, int]
_OTHERS: Final[_Voice] = (-1, "others", 0)


class AnswerTexts(Discreet):
    """Gathers output text.

    `chars`: how many characters wait to be taken. `not_text`: there was output of another kind, sound or images.
    """

    chars: int = 0
    not_text: bool = False
    _pieces: dict[_Voice, list[str]] = msgspec.field(default_factory=dict)
    _texts: dict[_Voice, str] = msgspec.field(default_factory=dict)

    def add_choice(self, choice: Choice) -> bool:
        """Gather the text of a choice, streamed or not; True if there was output in it."""
        index = choice.index or 0
        message = choice.delta or choice.message
        content = None
        found = False
        if message is not None:
            content = message.content
            if isinstance(content, str):
                if content:
                    self._put((index, "content", 0), content)
                    found = True
            elif content:
                found = self._add_parts(index, content)
            if self._add_others(index, message):
                found = True
        if choice.text and choice.text != content:  # Together sends both
            self._put((index, "content", 0), choice.text)
            found = True
        return found

    def add_event(self, said: Said) -> bool:
        """Gather the text of an event that is told by its type; True if there was output in it."""
        kind = said.type
        if kind in _TEXT_DELTAS:
            if isinstance(said.delta, str) and said.delta:
                self._put((said.output_index or 0, kind, 0), said.delta)
                return True
        elif kind in _SOUND_OR_IMAGE:
            self.not_text = True
            return True
        elif kind == "response.output_item.added" and said.item is not None and said.item.name:
            self._put((said.output_index or 0, "name", 0), said.item.name)
            return True
        return False

    def add_content(self, text: str) -> None:
        """Gather text of the first choice."""
        if text:
            self._put((0, "content", 0), text)

    def add_body(self, said: Said) -> None:
        """Gather the text of an answer that was not streamed."""
        for choice in said.choices or ():
            self.add_choice(choice)
        if isinstance(said.text, str):  # a transcription; a response has an object there
            self._put((0, "text", 0), said.text)
        for number, item in enumerate(_dicts(said.output)):
            texts = [item.get(name) for name in _ITEM_STRINGS]
            for part in _dicts(item.get("content")) + _dicts(item.get("summary")):
                texts += [part.get("text"), part.get("refusal")]
            for text in texts:
                if isinstance(text, str):
                    self._put((number, "output", 0), text)
            if item.get("type") == "image_generation_call":
                self.not_text = True

    def join(self) -> None:
        """Join the pieces gathered since the last time: a short string costs many times the text that is in it."""
        for voice, pieces in self._pieces.items():
            text = "".join(pieces)
            if not text.isascii():
                text = text.encode(errors="replace").decode()  # halves of surrogate pairs are nothing to tokenise
            if voice not in self._texts and len(self._texts) >= MAX_TEXTS:
                voice = _OTHERS  # noqa: PLW2901 - the text goes there instead
            self._texts[voice] = self._texts.get(voice, "") + text
            self.chars += len(text)
        self._pieces.clear()

    def take(self, most_chars: int | None = None) -> list[str]:
        """The texts since the last time, each of one voice; of more than `most_chars` the first that many, or fewer."""
        self.join()
        left_chars = self.chars if most_chars is None else most_chars
        texts = []
        for voice, text in list(self._texts.items()):
            if left_chars <= 0:
                break
            taken = self._texts.pop(voice)
            if len(text) > left_chars:
                end = cut(text, 0, left_chars)
                taken, self._texts[voice] = text[:end], text[end:]
            texts.append(taken)
            left_chars -= len(text)
            self.chars -= len(taken)
        return [text for text in texts if text]

    def _put(self, voice: _Voice, text: str) -> None:
        pieces = self._pieces.get(voice)
        if pieces is None:
            self._pieces[voice] = [text]
        else:
            pieces.append(text)

    def _add_parts(self, index: int, parts: list[Any]) -> bool:
        """Mistral's list of parts: text, and thinking that holds text."""
        found = False
        for part in _dicts(parts):
            text = part.get("text")
            if isinstance(text, str) and text:
                self._put((index, "content", 0), text)
                found = True
            for thought in _dicts(part.get("thinking")):
                text = thought.get("text")
                if isinstance(text, str) and text:
                    self._put((index, "reasoning", 0), text)
                    found = True
        return found

    def _add_others(self, index: int, message: Message) -> bool:
        found = False
        reasoning = message.reasoning_content
        if reasoning:
            self._put((index, "reasoning", 0), reasoning)
            found = True
        if message.reasoning and message.reasoning != reasoning:  # vLLM sends both
            self._put((index, "reasoning", 0), message.reasoning)
            found = True
        if message.refusal:
            self._put((index, "refusal", 0), message.refusal)
            found = True
        for number, call in enumerate(message.tool_calls or ()):
            which = number if call.index is None else call.index
            if self._add_function((index, "tool", which), call.function or call.custom):
                found = True
        if message.function_call is not None and self._add_function((index, "function", 0), message.function_call):
            found = True
        if message.audio is not None:
            found = True
            self.not_text = self.not_text or bool(message.audio.data)
            if message.audio.transcript:
                self._put((index, "audio", 0), message.audio.transcript)
        return found

    def _add_function(self, voice: _Voice, function: Function | None) -> bool:
        if function is None:
            return False
        texts = [text for text in (function.name, function.arguments, function.input) if text]
        for text in texts:
            self._put(voice, text)
        return bool(texts)


def _dicts(raw: object) -> list[dict[str, Any]]:
    return [each for each in raw if isinstance(each, dict)] if isinstance(raw, list) else []
