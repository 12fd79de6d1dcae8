"""How a refusal is checked."""

from typing import Any

REFUSALS = (TypeError, ValueError)


def assert_names(error: Exception, *words: Any) -> None:
    """Fail unless the message of an error has all of the words."""
    missing = [word for word in map(str, words) if word not in str(error)]
    assert not missing, f"the message does not name {missing}: {error}"
