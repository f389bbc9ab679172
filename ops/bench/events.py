"""The events of the load, in the shape of the Realtime API (GA), and the timestamps that they carry.

A stamp is a mark and the sender's monotonic clock in 16 hex digits, at the front of the audio: hex digits are base64,
so the event stays what it was to everybody but the receiver. Both ends run on one machine and so share that clock.
"""

import base64
import random
import time
from typing import Final

_MARK: Final = b"STAMP+++"
_STAMP_BYTES: Final = len(_MARK) + 16

SESSION_CREATED: Final = (
    b'{"type":"session.created","event_id":"event_bench","session":{"type":"realtime","object":"realtime.session",'
    b'"id":"sess_bench","model":"bench","output_modalities":["audio"]}}'
)
UPDATE: Final = b'{"type":"session.update"'
SESSION_UPDATED: Final = SESSION_CREATED.replace(b"session.created", b"session.updated")
SMALL_APPEND: Final = b'{"type":"input_audio_buffer.append","audio":"AAAA"}'


class StampedEvent:
    """An event whose bytes are ready but for the stamp."""

    def __init__(self, head: bytes, audio_bytes: int, tail: bytes) -> None:
        """Make the event.

        Args:
            head: what stands before the audio.
            audio_bytes: length of the PCM; noise is as good as speech here.
            tail: what stands behind it.
        """
        audio = base64.b64encode(random.Random(1).randbytes(audio_bytes))
        self._prefix = head
        self._head, self._tail = head + _MARK, audio[_STAMP_BYTES:] + tail
        self._at = len(head)
        self.plain = head + audio + tail

    def stamped(self) -> bytes:
        """Return the event with the time of now."""
        return b"%b%016x%b" % (self._head, time.monotonic_ns(), self._tail)

    def is_in(self, message: memoryview) -> bool:
        """Whether a received event is one of these."""
        return bytes(message[: self._at]) == self._prefix

    def age_ns(self, message: memoryview) -> int | None:
        """Return how long ago a received event was stamped, None if it was not."""
        now = time.monotonic_ns()
        stamp = bytes(message[self._at : self._at + _STAMP_BYTES])
        return now - int(stamp[len(_MARK) :], 16) if stamp.startswith(_MARK) else None


APPEND: Final = StampedEvent(b'{"type":"input_audio_buffer.append","audio":"', 960, b'"}')  # 20 ms of PCM16 24 kHz
DELTA: Final = StampedEvent(
    b'{"type":"response.output_audio.delta","event_id":"event_bench","response_id":"resp_bench","item_id":"item_bench",'
    b'"output_index":0,"content_index":0,"delta":"',
    9600,  # 200 ms
    b'"}',
)
WORDS: Final = StampedEvent(
    b'{"type":"response.output_audio_transcript.delta","event_id":"event_bench","response_id":"resp_bench",'
    b'"item_id":"item_bench","output_index":0,"content_index":0,"delta":"',
    24,  # what is said in 200 ms and the stamp; base64 is as good as words here
    b'"}',
)
