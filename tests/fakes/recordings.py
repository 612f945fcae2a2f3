r"""Streams in the shapes that providers send (protocol.md sections 1 and 5), as named byte strings.

Each ends as an honest answer does, so that the proxy has nothing to add.
"""

from __future__ import annotations

from typing import Final, NamedTuple

CHAT: Final = "/v1/chat/completions"
COMPLETIONS: Final = "/v1/completions"
RESPONSES: Final = "/v1/responses"
TRANSCRIPTIONS: Final = "/v1/audio/transcriptions"
IMAGES: Final = "/v1/images/generations"

DONE: Final = b"data: [DONE]\n\n"
ROLE: Final = (
    b'data: {"id":"chatcmpl-CnM0","object":"chat.completion.chunk","created":1765879680,"model":"gpt-4o-mini",'
    b'"choices":[{"index":0,"delta":{"role":"assistant","content":"","refusal":null},"logprobs":null,'
    b'"finish_reason":null}]}\n\n'
)
FINISH: Final = (
    b'data: {"id":"chatcmpl-CnM0","object":"chat.completion.chunk","created":1765879680,"model":"gpt-4o-mini",'
    b'"choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}]}\n\n'
)


def delta(text: str) -> bytes:
    """A chunk of chat with raw UTF-8 in it. `text` needs no JSON escapes."""
    return b'data: {"choices":[{"index":0,"delta":{"content":"%b"},"finish_reason":null}]}\n\n' % text.encode()


def response_event(kind: str, number: int) -> bytes:
    """An event of /v1/responses, with both of its lines."""
    data = b'{"type":"%b","delta":"This","sequence_number":%d}' % (kind.encode(), number)
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), data)


OPENAI: Final = (
    b'data: {"id":"chatcmpl-CnM0","object":"chat.completion.chunk","created":1765879680,'
    b'"model":"gpt-4o-mini-2024-07-18","service_tier":"default","system_fingerprint":"fp_644f11dd4d",'
    b'"choices":[{"index":0,"delta":{"role":"assistant","content":"","refusal":null},"logprobs":null,'
    b'"finish_reason":null}],"usage":null,"obfuscation":"yKkTGHRZw"}\n\n'
    b'data: {"id":"chatcmpl-CnM0","usage":null,"choices":[{"index":0,"delta":{"content":"Th\xc3\xa9 \xf0\x9f\x8c\x8a"},'
    b'"logprobs":null,"finish_reason":null}],"obfuscation":"t"}\n\n'
    b'data: {"id":"chatcmpl-CnM0","choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}],'
    b'"usage":null,"obfuscation":"Qm3"}\n\n'
    b'data: {"id":"chatcmpl-CnM0","choices":[],"usage":{"prompt_tokens":12,"completion_tokens":12,"total_tokens":24,'
    b'"prompt_tokens_details":{"cached_tokens":0,"audio_tokens":0}},"obfuscation":"parVcHlnsA"}\n\n' + DONE
)
# two choices interleaved, each with a finish of its own
N_2: Final = (
    b'data: {"choices":[{"index":0,"delta":{"content":"one"},"finish_reason":null}]}\n\n'
    b'data: {"choices":[{"index":1,"delta":{"content":"un"},"finish_reason":null}]}\n\n'
    b'data: {"choices":[{"index":1,"delta":{},"finish_reason":"length"}]}\n\n'
    b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n' + DONE
)
TOOL_CALLS: Final = (
    b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":null,"tool_calls":[{"index":0,'
    b'"id":"call_1","type":"function","function":{"name":"get_weather","arguments":""}}]},"finish_reason":null}]}\n\n'
    b'data: {"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{\\"city\\":\\"L\\u'
    b'00e9on\\",\\"finish_reason\\":\\"stop\\"}"}}]},"finish_reason":null}]}\n\n'
    b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"tool_calls"}]}\n\n' + DONE
)
LEGACY: Final = (
    b'data: {"id":"cmpl-1","object":"text_completion","created":1,"model":"gpt-3.5-turbo-instruct",'
    b'"choices":[{"text":"\\n\\nThis","index":0,"logprobs":null,"finish_reason":null}],"usage":null}\n\n'
    b'data: {"id":"cmpl-1","object":"text_completion","choices":[{"text":"","index":0,"finish_reason":"length"}]}\n\n'
    + DONE
)
RESPONSE: Final = (
    b'event: response.created\ndata: {"type":"response.created","response":{"id":"resp_1","status":"in_progress",'
    b'"error":null,"usage":null},"sequence_number":0}\n\n'
    b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","content_index":0,'
    b'"delta":"This","item_id":"msg_1","logprobs":[],"obfuscation":"ZJTX0RKOR8C9","sequence_number":1}\n\n'
    b'event: response.novelty\ndata: {"type":"response.novelty","sequence_number":2}\n\n'
    b'event: response.completed\ndata: {"type":"response.completed","response":{"id":"resp_1","status":"completed",'
    b'"usage":{"input_tokens":22,"output_tokens":6,"total_tokens":28}},"sequence_number":3}\n\n'
)
# the failure is the upstream's own, and said in a form that clients see
RESPONSE_FAILED: Final = (
    b'event: response.failed\ndata: {"type":"response.failed","response":{"id":"resp_1","status":"failed",'
    b'"error":{"code":"server_is_overloaded","message":"Slow down"}},"sequence_number":0}\n\n'
)
# prompt filter first, an annotation without delta after the stop
AZURE: Final = (
    b'data: {"id":"","object":"","created":0,"model":"","prompt_filter_results":[{"prompt_index":0,'
    b'"content_filter_results":{"hate":{"filtered":false,"severity":"safe"}}}],"choices":[],"usage":null}\n\n'
    b'data: {"choices":[{"index":0,"delta":{"content":"Hi"},"finish_reason":null,"content_filter_results":{}}]}\n\n'
    b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
    b'data: {"id":"","choices":[{"index":0,"finish_reason":null,"content_filter_offsets":{"check_offset":44,'
    b'"start_offset":44,"end_offset":198},"content_filter_results":{"hate":{"filtered":false}}}]}\n\n' + DONE
)
OPENROUTER: Final = (
    b": OPENROUTER PROCESSING\n\n: OPENROUTER PROCESSING\n\n"
    b'data: {"id":"gen-1","provider":"Groq","choices":[{"index":0,"delta":{"role":"assistant","content":"Hi"},'
    b'"finish_reason":null,"native_finish_reason":null}]}\n\n: OPENROUTER PROCESSING\n\n'
    b'data: {"id":"gen-1","choices":[{"index":0,"delta":{"content":""},"finish_reason":"stop"}]}\n\n'
    b'data: {"id":"gen-1","choices":[{"index":0,"delta":{"content":""},"finish_reason":null}],"usage":'
    b'{"prompt_tokens":9,"completion_tokens":1,"total_tokens":10,"cost":0.00014}}\n\n' + DONE
)
OPENROUTER_ERROR: Final = (
    ROLE + b'data: {"id":"gen-1","error":{"code":502,"message":"Provider disconnected","metadata":{}},'
    b'"choices":[{"index":0,"delta":{"content":""},"finish_reason":"error"}]}\n\n'
)
VLLM: Final = (
    b'data: {"id":"chatcmpl-1","choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,'
    b'"finish_reason":null}],"prompt_token_ids":null}\n\n'
    b'data: {"id":"chatcmpl-1","choices":[{"index":0,"delta":{"reasoning":"hm","reasoning_content":"hm"},'
    b'"logprobs":null,"finish_reason":null,"token_ids":null}],"usage":{"prompt_tokens":5,"total_tokens":6}}\n\n'
    b'data: {"id":"chatcmpl-1","choices":[{"index":0,"delta":{"content":"."},"finish_reason":"stop",'
    b'"stop_reason":151645}]}\n\n' + DONE
)
VLLM_ERROR: Final = (
    ROLE + b'data: {"error":{"message":"EngineCore died","type":"InternalServerError","param":null,"code":500}}\n\n'
) + DONE
GEMINI: Final = (
    b'data: {"choices":[{"delta":{"content":"A","role":"assistant"},"index":0}],"created":1,"id":"x","model":'
    b'"gemini","object":"chat.completion.chunk","usage":{"completion_tokens":1,"prompt_tokens":4,"total_tokens":5}}\n\n'
    b'data: {"choices":[{"delta":{"content":"B","role":"assistant"},"finish_reason":"stop","index":0}],"usage":'
    b'{"completion_tokens":2,"prompt_tokens":4,"total_tokens":6}}\n\n' + DONE
)
GROQ: Final = (
    b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":"Hi"},"finish_reason":null}],'
    b'"x_groq":{"id":"req_01"}}\n\n'
    b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"x_groq":{"id":"req_01","usage":'
    b'{"queue_time":0.01826,"prompt_tokens":41,"prompt_time":0.0021,"completion_tokens":2}}}\n\n' + DONE
)
DEEPSEEK: Final = (
    b": keep-alive\n\n: keep-alive\n\n"
    b'data: {"choices":[{"index":0,"delta":{"content":null,"reasoning_content":"\xe4\xbd\xa0"},'
    b'"logprobs":null,"finish_reason":null}]}\n\n: keep-alive\n\n'
    b'data: {"choices":[{"index":0,"delta":{"content":""},"finish_reason":"insufficient_system_resource"}],"usage":'
    b'{"prompt_tokens":4,"completion_tokens":9,"prompt_cache_hit_tokens":0,"prompt_cache_miss_tokens":4}}\n\n' + DONE
)
MISTRAL: Final = (
    b'data: {"id":"c1","choices":[{"index":0,"delta":{"role":"assistant","content":[{"type":"text","text":"Oui"}]},'
    b'"finish_reason":null}]}\n\n'
    b'data: {"id":"c1","choices":[{"index":0,"delta":{"content":""},"finish_reason":"model_length"}],"usage":'
    b'{"prompt_tokens":5,"total_tokens":7,"completion_tokens":2}}\n\n' + DONE
)
TOGETHER: Final = (
    b'data: {"choices":[{"index":0,"text":"a","logprobs":null,"finish_reason":null,"delta":{"token_id":264,'
    b'"content":"a"}}],"usage":null,"warnings":[]}\n\n'
    b'data: {"choices":[{"index":0,"text":"","finish_reason":"eos","delta":{"token_id":2,"content":""}}],"usage":'
    b'{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}\n\n' + DONE
)
OLLAMA: Final = (
    b'data: {"id":"chatcmpl-1","choices":[{"index":0,"delta":{"role":"assistant","reasoning":"Hm"},'
    b'"finish_reason":null}],"usage":{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}}\n\n'
    b'data: {"id":"chatcmpl-1","choices":[{"index":0,"delta":{"role":"assistant"},"finish_reason":"stop"}]}\n\n' + DONE
)
LLAMA_CPP: Final = (
    b'data: {"choices":[{"finish_reason":null,"index":0,"delta":{"content":"x"}}]}\n\n'
    b'data: {"choices":[{"finish_reason":"stop","index":0,"delta":{}}]}\n\n'
    b'data: {"choices":[],"usage":{"completion_tokens":1},"timings":{"prompt_n":1,"prompt_ms":24.5,'
    b'"predicted_per_second":40.81632653061224}}\n\n' + DONE
)
LITELLM: Final = b": ping\n\n" + ROLE + b": ping\n\n" + FINISH + b": ping\n\n" + DONE
XAI_NULL_ERROR: Final = ROLE.replace(b'{"id"', b'{"error":null,"id"') + FINISH + DONE
NO_SPACE: Final = (ROLE + FINISH + DONE).replace(b"data: ", b"data:")
CRLF: Final = OPENAI.replace(b"\n", b"\r\n")
CR: Final = OPENAI.replace(b"\n", b"\r")
MIXED_LINE_ENDS: Final = ROLE.replace(b"\n", b"\r\n") + FINISH.replace(b"\n", b"\r") + DONE
BOM: Final = b"\xef\xbb\xbf" + OPENAI
IDS: Final = b"retry: 1000\n\nid: 1\n" + ROLE + b"id: 2\nevent: message\n" + FINISH + b"id\n" + DONE
TWO_DATA_LINES: Final = (
    ROLE + b'data: {"choices":[{"index":0,\ndata: "delta":{},"finish_reason":"stop"}]}\n\n\n\n\n'
) + DONE
ODD_LINES: Final = b": x\n" + ROLE + b"\n\nunknown: field\n\nevent: ping\n\ndata: {}\n\n" + FINISH + b":\n\n" + DONE
LINE_SEPARATORS: Final = ROLE + delta("a\u2028b\u2029c\x85d\x0be") + FINISH + DONE
SPLIT_UTF8: Final = (
    ROLE + delta("\u4f60\u597d\uff0c\u4e16 \U0001f30a \xe9 \u2013 \U0001f469\u200d\U0001f467") + FINISH + DONE
)
DONE_WITHOUT_BLANK_LINE: Final = ROLE + FINISH + b"data: [DONE]"
DONE_WITH_SPACE: Final = ROLE + FINISH + b"data: [DONE] \n\n"
NO_DONE: Final = ROLE + FINISH
DATA_AFTER_DONE: Final = ROLE + FINISH + DONE + b'data: {"late":true}\n\n'
DONE_ALONE: Final = DONE
TRANSCRIPT: Final = (
    b'data: {"type":"transcript.text.delta","delta":"I"}\n\n'
    b'data: {"type":"transcript.text.done","text":"I","usage":{"type":"tokens","input_tokens":14}}\n\n'
)


class Recording(NamedTuple):
    """What an upstream answers to a stream request on `path`."""

    path: str
    body: bytes


RECORDINGS: Final = {
    "openai": Recording(CHAT, OPENAI),
    "openai-n-2": Recording(CHAT, N_2),
    "openai-tools": Recording(CHAT, TOOL_CALLS),
    "completions": Recording(COMPLETIONS, LEGACY),
    "responses": Recording(RESPONSES, RESPONSE),
    "responses-failed": Recording(RESPONSES, RESPONSE_FAILED),
    "transcription": Recording(TRANSCRIPTIONS, TRANSCRIPT),
    "azure": Recording(CHAT, AZURE),
    "openrouter": Recording(CHAT, OPENROUTER),
    "openrouter-error": Recording(CHAT, OPENROUTER_ERROR),
    "vllm": Recording(CHAT, VLLM),
    "vllm-error": Recording(CHAT, VLLM_ERROR),
    "gemini": Recording(CHAT, GEMINI),
    "groq": Recording(CHAT, GROQ),
    "deepseek": Recording(CHAT, DEEPSEEK),
    "mistral": Recording(CHAT, MISTRAL),
    "together": Recording(CHAT, TOGETHER),
    "ollama": Recording(CHAT, OLLAMA),
    "llama.cpp": Recording(CHAT, LLAMA_CPP),
    "litellm": Recording(CHAT, LITELLM),
    "null-error": Recording(CHAT, XAI_NULL_ERROR),
    "no-space": Recording(CHAT, NO_SPACE),
    "crlf": Recording(CHAT, CRLF),
    "cr": Recording(CHAT, CR),
    "mixed-line-ends": Recording(CHAT, MIXED_LINE_ENDS),
    "bom": Recording(CHAT, BOM),
    "ids": Recording(CHAT, IDS),
    "two-data-lines": Recording(CHAT, TWO_DATA_LINES),
    "odd-lines": Recording(CHAT, ODD_LINES),
    "line-separators": Recording(CHAT, LINE_SEPARATORS),
    "split-utf8": Recording(CHAT, SPLIT_UTF8),
    "done-without-blank-line": Recording(CHAT, DONE_WITHOUT_BLANK_LINE),
    "done-with-space": Recording(CHAT, DONE_WITH_SPACE),
    "no-done": Recording(CHAT, NO_DONE),
    "data-after-done": Recording(CHAT, DATA_AFTER_DONE),
    "done-alone": Recording(CHAT, DONE_ALONE),
}
