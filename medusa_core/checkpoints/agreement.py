"""Whether a tokenizer that comes with heads is the base model's: ids that mean other words are never accepted."""

import logging
from pathlib import Path

from medusa_core.errors import CheckpointError, HeadsMismatch
from medusa_core.tokenizer_files import load_tokenizer, tokenizer_folder

__all__ = ["refuse_another_tokenizer"]

_log = logging.getLogger(__name__)


def refuse_another_tokenizer(heads: Path, base: str) -> None:
    """Raise HeadsMismatch when the heads' folder holds a tokenizer in which an id means another token.

    base: folder or hub id of the base model. A tokenizer that cannot be read proves nothing and is passed over.
    """
    if not any((heads / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        return
    try:
        folder = tokenizer_folder(base)
        if folder.resolve() == heads.resolve():
            return
        theirs, ours = (load_tokenizer(place, str(place)).get_vocab() for place in (heads, folder))
    except CheckpointError as error:
        _log.info("the tokenizers of heads and base are not compared: %s", error)
        return
    by_id = {number: token for token, number in ours.items()}
    for token, number in sorted(theirs.items(), key=lambda entry: entry[1]):
        if by_id.get(number, token) != token:
            raise HeadsMismatch(
                f"the heads in {str(heads)!r} come with a tokenizer whose id {number} is {token!r}, in that of "
                f"{base!r} it is {by_id[number]!r}; they belong to another base"
            )
