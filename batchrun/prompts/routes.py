"""Find the route that the `url` of an OpenAI batch line means: the path that the worker passes on to vLLM.

worker-vllm passes any path on to vLLM (worker-vllm 2.25). Batch files contain paths of other servers: Azure's, which
have no version, or full URLs, of which vLLM knows only the end.
"""

from __future__ import annotations

import re
from typing import Any

_URL = re.compile(r"(https?://[^/?#]*)?([^?#]*)(?:[?#].*)?", re.DOTALL)
"""The host, if any; the path; and a query, which in Azure's URLs is the version of the API."""
_OPERATION = re.compile(
    r"/(chat/completions(?:/batch)?|completions|embeddings|responses|messages|audio/(?:transcriptions|translations))$"
)
"""The operations of OpenAI's API: vLLM has each under /v1/, other servers under other prefixes."""
_OWN = re.compile(r"/(v\d+/(re)?rank|v\d+/score|v\d+/embed|rerank|score|pooling|classify|tokenize|detokenize)$")
"""vLLM's further operations, under exactly these paths (vLLM 0.32)."""


def route_of(url: Any, body: Any) -> str | None:
    """The route of a batch line; None if it has none.

    Args:
        url: A path such as /v1/chat/completions, Azure's form of it (/chat/completions), or a full URL. None if the
            line has none: then the body decides, as in the files of Mistral, Fireworks and Novita.
        body: The line's body.
    """
    if url is None and isinstance(body, dict):
        return "/v1/chat/completions" if "messages" in body else "/v1/completions" if "prompt" in body else None
    if not isinstance(url, str) or url.startswith("/v1/"):
        return url if isinstance(url, str) else None
    match = _URL.fullmatch(url)
    path = "/" + match[2].strip("/") if match and "://" not in match[2] else ""
    if known := _OPERATION.search(path):
        return f"/v1/{known[1]}"
    if match and not match[1]:
        return path if url.startswith("/") and len(path) > 1 else None
    own = _OWN.search(path)
    return own[0] if own else None


def is_route(url: Any) -> bool:
    """Whether a value is certainly a route, and not the address of a web page."""
    return isinstance(url, str) and (url.startswith("/v1/") or _OPERATION.search(url.rstrip("/")) is not None)
