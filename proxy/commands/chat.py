"""`sluice chat`: a conversation in the terminal, with the official OpenAI SDK as any application uses it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import click
import openai

with contextlib.suppress(ImportError):
    import readline  # noqa: F401 - `input` then has a history and editing keys

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletionMessageParam


def run(message: str | None, *, model: str, base_url: str, key: str) -> str | None:
    """Answer `message`, or hold a conversation when there is none. Returns what went wrong, in words, or None."""
    client = openai.OpenAI(base_url=base_url, api_key=key, max_retries=0)
    if message is not None:
        return _answer(client, model, [{"role": "user", "content": message}])[1]
    click.echo(f"{model} through {base_url}. Ctrl-C stops an answer, Ctrl-D ends.")
    messages: list[ChatCompletionMessageParam] = []
    while (asked := _ask()) is not None:
        if not asked.strip():
            continue
        messages.append({"role": "user", "content": asked})
        answer, failure = _answer(client, model, messages)
        if failure is not None:
            click.echo(f"[{failure}]", err=True)
        if answer:
            messages.append({"role": "assistant", "content": answer})
        else:
            messages.pop()  # an unanswered question would stay in every later one
    return None


def _ask() -> str | None:
    """The next line; None at the end of input, or at Ctrl-C on an empty prompt."""
    try:
        return input("> ")
    except (EOFError, KeyboardInterrupt):
        click.echo()
        return None


def _answer(client: openai.OpenAI, model: str, messages: list[ChatCompletionMessageParam]) -> tuple[str, str | None]:
    """Print the answer as it streams. Ctrl-C closes the stream, and with it the upstream's work."""
    said: list[str] = []
    failure = None
    try:
        with client.chat.completions.create(model=model, messages=messages, stream=True) as stream:
            for chunk in stream:
                text = chunk.choices[0].delta.content if chunk.choices else None
                if text:
                    said.append(text)
                    click.echo(text, nl=False)
    except KeyboardInterrupt:
        failure = "stopped"
    except openai.APITimeoutError:
        failure = "no answer in time"
    except openai.APIConnectionError:
        failure = (
            "the connection broke" if said else f"cannot reach {client.base_url}: is `sluice serve` running there?"
        )
    except openai.APIStatusError as error:
        failure = f"{error.status_code}: {_words(error)}"
    except openai.APIError as error:
        failure = error.message
    if said or failure is None:
        click.echo()
    return "".join(said), failure


def _words(error: openai.APIStatusError) -> str:
    """What the answer says itself; the SDK's own message repeats the status and the whole body."""
    message = error.body.get("message") if isinstance(error.body, dict) else None
    return message if isinstance(message, str) else error.message
