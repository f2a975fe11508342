"""Reading while others write: between a row and the blob that it names, somebody may let go of that blob.

Then other rows say what is there now. A blob that is missing for another reason is missing every time.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from lorareg.registry.errors import MissingBlobError, OriginalGoneError

Result = TypeVar("Result")
LOOKS = 4


def look_again(look: Callable[[], Result]) -> Result:
    """What `look` finds, from rows to blobs; it is asked again where a blob is gone.

    Raises:
        MissingBlobError: a blob is missing, and not because others let go of it.
        OriginalGoneError: likewise.
    """
    for _ in range(LOOKS - 1):
        with suppress(MissingBlobError, OriginalGoneError):
            return look()
    return look()
