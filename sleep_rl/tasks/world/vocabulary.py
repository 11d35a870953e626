"""The closed vocabulary of the world; it does not depend on the seed."""

from __future__ import annotations

from sleep_rl.tasks.world import question_kinds
from sleep_rl.tasks.world.people import ATTRIBUTES, FIRST_NAMES, LAST_NAMES, MARKER, OPENER

PLACEHOLDERS = ("NAME", "VALUE", "CITY", "JOB", "FOOD", "PET")


def vocabulary(deep: bool = False) -> list[str]:
    """Return every word that a world (with `deep`: a deep world) can contain, in a fixed order."""
    texts = [OPENER, MARKER, *FIRST_NAMES, *LAST_NAMES]
    for attribute in ATTRIBUTES:
        texts += [attribute.question, *attribute.sentences, *attribute.values]
    if deep:
        texts += question_kinds.template_texts()
    words = dict.fromkeys(word for text in texts for word in text.split())
    return [word for word in words if word not in PLACEHOLDERS]
