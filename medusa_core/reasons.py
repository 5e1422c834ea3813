"""What other people's errors say, as a part of a message of ours."""

__all__ = ["in_one_line"]


def in_one_line(error: BaseException, most: int = 300) -> str:
    """What the error says, on one line of at most so many characters; its kind where it says nothing.

    A message of the hub's library, for one, has several lines, the first of which is the id of a request.
    """
    said = " ".join(str(error).split())
    return said[:most] if said else type(error).__name__
