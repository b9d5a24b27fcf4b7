"""The words and templates that tasks are made from: plain data.

Nouns are (singular, plural). A tokenizer uses those whose two forms have equally many tokens.
"""

from __future__ import annotations

_REGULAR = """
actor advisor artist aunt author baker banker barber boxer boy brother butcher captain clerk coach
collector cook cousin dancer daughter dealer director doctor driver editor engineer farmer father
fighter friend gardener girl guard guest hunter inspector judge keeper king lawyer leader manager
mayor member minister mother neighbor nurse officer owner painter parent partner pilot player poet
porter preacher prince prisoner producer queen reader rider ruler sailor scholar scientist senator
servant singer sister soldier son speaker student surgeon teacher trader trainer visitor waiter
walker warrior winner worker writer
""".split()
_IRREGULAR = {"man": "men", "woman": "women", "child": "children", "lady": "ladies"}
NOUNS = [*((one, one + "s") for one in _REGULAR), *_IRREGULAR.items()]

VERBS = [("is", "are"), ("was", "were"), ("has", "have")]
OPENERS = ["The", "Now the", "Then the", "And the", "But the", "So the"]
PREPOSITIONS = ["near", "behind", "with", "beside", "before"]
PAST = ["liked", "saw", "knew", "helped", "called", "followed", "found"]

NAMES = """
Adam Al Alan Alice Amy Andrew Ann Anna Anne Anthony Arthur Ben Bill Bob Brian Carl Charles Chris
Daniel David Ed Edward Elizabeth Emily Emma Eric Frank Fred George Grace Harry Helen Henry Jack
Jake James Jane Jason Jean Jim Joe John Joseph Julia Kate Kevin Laura Lee Louis Luke Maria Mark
Martin Mary Matt Max Michael Mike Nick Paul Peter Philip Richard Robert Rose Ruth Ryan Sam Sarah
Scott Simon Stephen Steve Susan Ted Thomas Tim Tom Tony Victoria Walter Will William
""".split()
PLACES = ["store", "park", "school", "church", "city", "house", "station", "garden"]
THINGS = ["book", "letter", "drink", "card", "song", "present", "picture", "hand"]
MEETINGS = [
    "When {0} and {1} went to the {place}, {2} gave a {thing} to",
    "After {0} and {1} came from the {place}, {2} gave a {thing} to",
    "While {0} and {1} were at the {place}, {2} gave a {thing} to",
]

# {opener}, {subject}, {other} (a noun of either number), {preposition} and {past}
AGREEMENT = {
    "agreement_simple": "{opener} {subject}",
    "agreement_across_pp": "{opener} {subject} {preposition} the {other}",
    "agreement_within_rc": "{opener} {other} that the {subject}",
    "agreement_across_rc": "{opener} {subject} that the {other} {past}",
}
