"""W3C Trace Context: the trace of the request that submitted a job is stored with the job.

Every log line about the job and its webhook carry the same trace id, whichever process or execution writes them.
Spans are not exported: a log collector that reads the JSON logs already has the trace id, the process and the time.
"""

import re
import secrets

TRACEPARENT = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})(-.*)?")


def child_of(traceparent: str | None) -> str:
    """The `traceparent` of a new span in the trace of a caller; of a new trace if the header is missing or invalid.

    Source: W3C Trace Context, Section 3.2; versions after 00 may append fields, which are dropped.
    """
    match = TRACEPARENT.fullmatch(traceparent or "")
    if match is None or (match[1] == "00" and match[4]):
        return f"00-{secrets.token_hex(16)}-{_span_id()}-01"
    return f"00-{match[2]}-{_span_id()}-{match[3]}"


def _span_id() -> str:
    return f"{secrets.randbelow(2**64 - 1) + 1:016x}"  # all zeros is not valid
