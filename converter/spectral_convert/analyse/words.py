"""Syntactic classes: from the Brown corpus' tags, or for untagged text from closed word lists."""

from __future__ import annotations

import re
from collections.abc import Iterator

# Brown's tags in few classes, longest prefix first (Francis and Kucera 1979, manual of the corpus).
BROWN_PREFIXES = {
    "ABL": "determiner", "ABN": "determiner", "ABX": "determiner", "AP": "determiner", "AT": "determiner",
    "BE": "auxiliary", "DO": "auxiliary", "HV": "auxiliary", "MD": "auxiliary",
    "CC": "conjunction", "CS": "conjunction", "CD": "number", "OD": "number",
    "DT": "determiner", "EX": "pronoun", "IN": "preposition", "TO": "particle", "RP": "particle",
    "JJ": "adjective", "NN": "noun", "NP": "noun", "NR": "noun", "PN": "pronoun", "PP": "pronoun",
    "QL": "adverb", "RB": "adverb", "RN": "adverb", "UH": "other", "VB": "verb",
    "WDT": "determiner", "WP": "pronoun", "WQL": "adverb", "WRB": "adverb", "*": "particle", "FW": "other",
}  # fmt: skip

CLOSED_CLASSES = {
    "determiner": "a an the this that these those each every either neither some any no all both half such "
    "what which whose another other many much few several",
    "pronoun": "i me my mine myself you your yours yourself he him his himself she her hers herself it its "
    "itself we us our ours ourselves they them their theirs themselves who whom one ones "
    "someone anyone everyone nobody something anything everything nothing there",
    "preposition": "of in on at by for with about against between into through during before after above "
    "below to from up down over under within without upon among toward towards across behind beyond "
    "near since until off",
    "conjunction": "and or but nor so yet because although though while whereas if unless than as when "
    "whenever where wherever whether",
    "auxiliary": "be am is are was were been being have has had having do does did doing will would shall "
    "should can could may might must ought cannot don't doesn't didn't isn't aren't wasn't "
    "weren't won't can't",
    "adverb": "not never always often also too very just only even still already again then thus here now "
    "quite rather almost perhaps however therefore n't",
}
WORD_CLASS = {word: name for name, words in CLOSED_CLASSES.items() for word in words.split()}

_PIECE = re.compile(r"[A-Za-z]+(?:['’][A-Za-z]+)?|\d[\d.,]*|[^\W\d_]+|\s+|.", re.DOTALL)
_PUNCTUATION = set(".,;:!?'\"()[]-–—‘’“”…`")

Span = tuple[int, int, str]


def brown_class(tag: str) -> str:
    """The class of a Brown tag such as `nn-tl` or `ppss+bem`; what combines two tags goes by the first."""
    head = re.split(r"[-+]", tag.upper(), maxsplit=1)[0].rstrip("$*") or tag.upper()
    for length in (3, 2, 1):
        if head[:length] in BROWN_PREFIXES:
            return BROWN_PREFIXES[head[:length]]
    return "other" if any(c.isalpha() for c in head) else "punctuation"


def untagged_spans(text: str) -> Iterator[Span]:
    """(start, end, class) of every piece of a text by word lists; an open-class word is `content`."""
    for match in _PIECE.finditer(text):
        yield match.start(), match.end(), _class_of(match.group())


def _class_of(piece: str) -> str:
    if piece[0].isspace():
        return "space"
    if piece[0].isdigit():
        return "number"
    if piece[0].isalpha():
        return WORD_CLASS.get(piece.lower().replace("’", "'"), "content")
    return "punctuation" if piece in _PUNCTUATION else "symbol"
