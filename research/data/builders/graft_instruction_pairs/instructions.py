"""Instructions that a program can check, and answers made to follow them.

The kinds are those of IFEval that a program can also fulfil (Zhou 2023, arXiv:2311.07911, table 1);
their names and settings are its own, so that its verifiers check the answers. The words are not:
no prompt is one of IFEval's.
"""

from __future__ import annotations

import collections
import json
import random
import re
from collections.abc import Callable
from typing import Any, NamedTuple


class Instruction(NamedTuple):
    """One instruction, as IFEval names it, and what it says."""

    name: str
    settings: dict[str, Any]
    text: str


# what an instruction makes of the text so far, and itself
Change = tuple[str, Instruction]

_COMMON = ("very", "many", "however", "people", "good", "important", "often", "really", "because")
_ENDS = (
    "That is all there is to say.",
    "I hope this helps.",
    "Ask me if you want to know more.",
    "This is where it ends.",
)
_PLACEHOLDERS = ("source", "date", "author", "page", "publisher")


def _lines(draw: random.Random, title: str, parts: list[str]) -> Change:
    count = len(parts)
    say = (
        f"Write it as a list of {count} points, each on a line that begins with an asterisk.",
        f"I want {count} bullet points (* like this), not one more or less.",
        f"Give exactly {count} items in a markdown list.",
    )
    settings = {"num_bullets": count}
    text = "\n".join(f"* {part}" for part in parts)
    return text, Instruction("detectable_format:number_bullet_lists", settings, draw.choice(say))


def _paragraphs(draw: random.Random, title: str, parts: list[str]) -> Change:
    count = len(parts)
    say = (
        f"Make {count} paragraphs of it, with a line of three asterisks (***) between them.",
        f"Use {count} paragraphs and put *** between one and the next.",
    )
    settings = {"num_paragraphs": count}
    text = "\n\n***\n\n".join(parts)
    return text, Instruction("length_constraints:number_paragraphs", settings, draw.choice(say))


def _first_word(draw: random.Random, title: str, parts: list[str]) -> Change:
    count, number = len(parts), draw.randrange(len(parts))
    word = re.sub(r"\W+$", "", parts[number].split()[0]).lower()
    say = (
        f"Write {count} paragraphs with an empty line between them; number {number + 1} begins "
        f'with "{word}".',
        f'I need {count} paragraphs, an empty line between each two, and "{word}" as the first '
        f"word of paragraph {number + 1}.",
    )
    settings = {"num_paragraphs": count, "nth_paragraph": number + 1, "first_word": word}
    name = "length_constraints:nth_paragraph_first_word"
    return "\n\n".join(parts), Instruction(name, settings, draw.choice(say))


def _sections(draw: random.Random, title: str, parts: list[str]) -> Change:
    word = draw.choice(("Section", "Part", "Chapter"))
    say = (
        f"Divide it into {len(parts)} sections, headed {word} 1, {word} 2 and so on.",
        f'It has {len(parts)} sections; head each with "{word}" and its number.',
    )
    settings = {"section_spliter": word, "num_sections": len(parts)}
    text = "\n\n".join(f"{word} {n}\n{part}" for n, part in enumerate(parts, start=1))
    return text, Instruction("detectable_format:multiple_sections", settings, draw.choice(say))


def _heading(draw: random.Random, title: str, parts: list[str]) -> Change:
    say = (
        "Put a title above it, between << and >>.",
        "Begin with a title in double angle brackets (<<like this>>).",
    )
    text = f"<<{title}>>\n\n{' '.join(parts)}"
    return text, Instruction("detectable_format:title", {}, draw.choice(say))


def _highlights(draw: random.Random, title: str, parts: list[str]) -> Change:
    count = draw.randint(1, len(parts))
    say = (
        f"Mark {count} or more passages with asterisks, *as here*.",
        f"Set at least {count} parts of it in *italics*, as markdown has them.",
    )
    highlights = [
        re.sub(r"(\w+ \w+)", r"*\1*", part, count=1) if n < count else part
        for n, part in enumerate(parts)
    ]
    settings = {"num_highlights": count}
    name = "detectable_format:number_highlighted_sections"
    return " ".join(highlights), Instruction(name, settings, draw.choice(say))


def _json(draw: random.Random, title: str, parts: list[str]) -> Change:
    say = (
        "Answer in JSON alone; three backticks around it are fine.",
        "Your whole answer is to be a JSON object.",
    )
    content = {"title": title, "text": " ".join(parts)}
    text = f"```json\n{json.dumps(content, indent=2, ensure_ascii=False)}\n```"
    return text, Instruction("detectable_format:json_format", {}, draw.choice(say))


def _two(draw: random.Random, title: str, parts: list[str]) -> Change:
    say = (
        "Give two different answers, with a line of six asterisks (******) between them.",
        "I want two answers that are not the same. Separate them with ******.",
    )
    text = f"{parts[0]}\n\n******\n\n{' '.join(parts)}"
    return text, Instruction("combination:two_responses", {}, draw.choice(say))


def _placeholders(draw: random.Random, title: str, parts: list[str]) -> Change:
    places = draw.sample(_PLACEHOLDERS, draw.randint(1, 3))
    say = (
        f"Leave {len(places)} or more places to be filled in, in square brackets, such as [name].",
        f"Use at least {len(places)} placeholders in square brackets like [place].",
    )
    text = f"{' '.join(parts)}\n\nFrom: " + " ".join(f"[{each}]" for each in places)
    settings = {"num_placeholders": len(places)}
    return text, Instruction("detectable_content:number_placeholders", settings, draw.choice(say))


def _end(draw: random.Random, text: str) -> Change:
    phrase = draw.choice(_ENDS)
    say = (
        f'The last words are: "{phrase}"',
        f'Finish with the sentence "{phrase}" and write nothing behind it.',
    )
    instruction = Instruction("startend:end_checker", {"end_phrase": phrase}, draw.choice(say))
    return f"{text}\n\n{phrase}", instruction


def _quotation(draw: random.Random, text: str) -> Change:
    say = (
        "Put all of it between double quotation marks.",
        'The answer begins with " and ends with ".',
    )
    return f'"{text}"', Instruction("startend:quotation", {}, draw.choice(say))


def _postscript(draw: random.Random, text: str) -> Change:
    marker = draw.choice(("P.S.", "P.P.S"))
    say = (
        f"Add a postscript that begins with {marker}",
        f"At the end comes a postscript, marked {marker}",
    )
    settings = {"postscript_marker": marker}
    instruction = Instruction("detectable_content:postscript", settings, draw.choice(say))
    return f"{text}\n\n{marker} {draw.choice(_ENDS)}", instruction


def _lower(draw: random.Random, text: str) -> Change:
    say = ("Use small letters only.", "Write no capital letter anywhere, in English.")
    return text.lower(), Instruction("change_case:english_lowercase", {}, draw.choice(say))


def _upper(draw: random.Random, text: str) -> Change:
    say = ("Write everything in capitals.", "Only capital letters, please, and in English.")
    return text.upper(), Instruction("change_case:english_capital", {}, draw.choice(say))


def _keywords(draw: random.Random, text: str) -> Instruction | None:
    words = sorted({word for word in re.findall(r"\b[a-z]{5,}\b", text)})
    if len(words) < 3:
        return None
    keywords = draw.sample(words, draw.randint(1, 3))
    listed = ", ".join(f'"{word}"' for word in keywords)
    say = (f"These words must be in it: {listed}.", f"Make use of {listed}.")
    return Instruction("keywords:existence", {"keywords": keywords}, draw.choice(say))


def _forbidden(draw: random.Random, text: str) -> Instruction | None:
    absent = [word for word in _COMMON if word not in text.lower()]
    if len(absent) < 3:
        return None
    taboos = draw.sample(absent, draw.randint(1, 3))
    listed = ", ".join(f'"{word}"' for word in taboos)
    say = (f"Do without {listed}.", f"Never write {listed}.")
    return Instruction("keywords:forbidden_words", {"forbidden_words": taboos}, draw.choice(say))


def _frequency(draw: random.Random, text: str) -> Instruction | None:
    counts = collections.Counter(re.findall(r"\b[a-z]{5,}\b", text))
    if not counts:
        return None
    word = max(counts, key=lambda word: (counts[word], word))
    count = len(re.findall(word, text, flags=re.IGNORECASE))
    if draw.random() < 0.5:
        relation, least = "at least", count
        say = f'"{word}" appears {count} times or more.'
    else:
        relation, least = "less than", count + 1
        say = f'Write "{word}" fewer than {count + 1} times.'
    settings = {"keyword": word, "frequency": least, "relation": relation}
    return Instruction("keywords:frequency", settings, say)


def _letters(draw: random.Random, text: str) -> Instruction | None:
    letter = draw.choice("abcdefghijklmnoprstuvwy")
    count = text.lower().count(letter)
    if draw.random() < 0.5 and count:
        relation, number = "at least", max(1, count - draw.randint(0, 3))
        say = f"The letter {letter} is in it at least {number} times."
    else:
        relation, number = "less than", count + draw.randint(1, 4)
        say = f"Use the letter {letter} less than {number} times."
    settings = {"letter": letter, "let_frequency": number, "let_relation": relation}
    return Instruction("keywords:letter_frequency", settings, say)


def _length(draw: random.Random, text: str) -> Instruction | None:
    count = len(re.findall(r"\w+", text))
    if draw.random() < 0.5:
        relation, number = "at least", count - count % 5
        say = f"It has {number} words or more."
    else:
        relation, number = "less than", count - count % 10 + 10
        say = f"Stay below {number} words."
    settings = {"num_words": number, "relation": relation}
    return Instruction("length_constraints:number_words", settings, say)


_FORMS: tuple[Callable[[random.Random, str, list[str]], Change], ...] = (
    _lines, _paragraphs, _first_word, _sections, _heading, _highlights, _json, _two, _placeholders,
)  # fmt: skip
_EDGES = (_end, _quotation, _postscript)
_CASES = (_lower, _upper)
_WORDS = (_keywords, _forbidden, _frequency, _letters, _length)
# forms whose verifiers would count an end or a quotation mark as something else
_NO_EDGE = (_lines, _json, _two, _paragraphs, _first_word)
# forms that have letters of their own
_NO_CASE = (_json, _sections)


def follow(
    draw: random.Random, title: str, sentences: list[str]
) -> tuple[str, list[Instruction]] | None:
    """An answer of some sentences, and the one to three instructions that it follows.

    Args:
      draw: what to choose with.
      title: what the sentences are about.
      sentences: what the answer says.

    Returns:
      None where the sentences are too few for what was drawn.
    """
    instructions: list[Instruction] = []
    parts = sentences
    if draw.random() < 0.15:
        parts = [part for part in sentences if "," not in part]
        say = ("Use no comma.", "There must not be a comma in it.")
        instructions.append(Instruction("punctuation:no_comma", {}, draw.choice(say)))
    form = draw.choice(_FORMS) if draw.random() < 0.6 else None
    if len(parts) < 2 or (instructions and ("," in title or form is _json)):
        return None
    if form is None:
        text = " ".join(parts)
    else:
        text, instruction = form(draw, title, parts)
        instructions.append(instruction)
    if form not in _NO_EDGE and draw.random() < 0.3:
        text, instruction = draw.choice(_EDGES)(draw, text)
        instructions.append(instruction)
    if form not in _NO_CASE and draw.random() < 0.2:
        text, instruction = draw.choice(_CASES)(draw, text)
        instructions.append(instruction)
    if len(instructions) < 3 and (not instructions or draw.random() < 0.4):
        about_words = draw.choice(_WORDS)(draw, text)
        instructions += [about_words] if about_words else []
    draw.shuffle(instructions)
    return (text, instructions) if instructions else None
