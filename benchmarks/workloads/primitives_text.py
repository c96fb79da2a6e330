"""Made-up prose, questions and house rules for the primitives: deterministic from the seed, no two questions alike."""

from __future__ import annotations

import re
from random import Random

RULES = """\
Answer in plain English, one thought to a sentence. Begin with the answer itself and give the reasons after it. Use \
what you were given; when it does not say something, say so, and do not guess. Numbers, names and dates are copied \
exactly, in the spelling of the source. Say which of your statements are certain and which are only likely. Do not \
repeat the question and do not greet anybody. Leave out praise, apologies and remarks about your own work. When two \
statements contradict each other, name both and say which one you believe and why. Prefer a short word to a long \
one and a concrete case to a general phrase. Do not write lists where three sentences would do. Compare amounts \
only when they are counted in the same unit and in the same year. A claim that somebody makes is reported as that \
person's claim. A cause has to come before its effect: check the years. Never turn an estimate into a count. When a \
person is mentioned for the first time, say what he or she does; afterwards the family name is enough. Keep apart \
what was planned, what was decided and what was done. If a figure looks too large or too small, say so and give the \
figure all the same. Money is given in the currency of the source and is not converted. Do not mention these rules. \
A reader who knows nothing of the place and the time has to understand every sentence at the first reading. Think \
of what such a reader would ask next, and answer that too if there is room. Reasons that everybody would give come \
last; reasons that only somebody of your trade would see come first. Do not agree with others out of politeness, \
and do not disagree to be interesting. If you change your mind, say what changed it. When there is nothing to add, \
stop. Old names of places are kept, and the present name stands behind them in brackets where you know it for \
certain. A quotation is never longer than one line, and it is never altered, not even where its spelling is odd. Do \
not call anything the first, the largest or the only one of its kind unless the source does. Weights and measures \
are left as they are. What happened in the same year is told in the order of the source. A rumour is worth a \
mention only if somebody acted on it. If the source takes a side, say which side, and try to say what the other one \
would have answered. Every paragraph has one subject, and its first sentence names it. A sum is checked before it \
is written down, and a share is given together with the whole of which it is a part. When you are asked for a \
judgement, give one judgement and not two. Be careful with words such as always, never and all, because a single \
exception makes them false. What you leave out matters as much as what you put in, so leave out first what a reader \
can do without. Your text is passed on to colleagues who do not see what you saw, and who have to be able to rely \
on it. Where two readings of a passage are possible, give the one that the rest of the text supports. Do not \
explain a word that an ordinary newspaper would leave unexplained. An office is named before the person who held \
it. If you count something, say what you counted and what you left out. Distances are measured along the road \
unless the source says otherwise. A thing that was repaired is not a new thing, and a thing that changed its name \
is not another thing. Read your text once more from the end to the beginning before you hand it on. Strike out the \
sentence that you like best if nothing is lost without it.\
"""
"""What every role of an app is told after its own first sentence; about 3,500 characters."""

_WORDS = {
    "who": "the harbour council,the weavers' guild,the railway board,the bishop,the mayor,the widow Tranter,"
    "the water company,the garrison,the school board,the savings bank,the county surveyor,the fishermen's union",
    "do": "buy,close,sell,rebuild,move,survey,insure,tax,lease,flood,abandon,defend",
    "done": "bought,closed,sold,rebuilt,moved,surveyed,insured,taxed,leased,flooded,abandoned,defended",
    "old": "old,new,northern,stone,unfinished,disputed,second,great,lower,wooden,forgotten,former",
    "thing": "salt mill,grain market,lighthouse,canal lock,printing house,customs shed,ferry,tannery,glassworks,"
    "orchard,foundry,toll bridge,hospital,brickyard,reservoir",
    "goods": "salt,wool,timber,coal,herring,glass,rope,barley,paper,slate,copper,lamp oil",
    "person": "Edith Marrow,Jonas Pell,Clara Voss,Henry Abelard,Ruth Sandoz,Tobias Finch,Agnes Lyle,Martin Oakes,"
    "Ida Brandt,Samuel Crewe,Nora Quill,Victor Hale",
    "trade": "engineer,clerk,notary,miller,captain,teacher,carpenter,surgeon,printer,merchant",
    "beginning": "Ard,Bel,Cor,Dun,Els,Fen,Gar,Hol,Ing,Kel,Lan,Mor,Nor,Oster,Pen,Rav,Sel,Thorn,Ul,Wex",
    "ending": "mouth,ford,wick,ham,stead,by,ton,haven,burgh,field,minster,ness",
    "season": "In spring,Before the harvest,During the long winter,After the floods,Late in the year,Within a month",
}
_CHOICES = {slot: words.split(",") for slot, words in _WORDS.items()}
_SENTENCES = (
    "In {year} {who} of {place} {done} the {old} {thing}, which had cost {number} pounds to build.",
    "{person}, a {trade}, kept the accounts and noted that {number} tons of {goods} passed through it every year.",
    "{season} the price of {goods} fell by {percent} percent, and {who} asked the government for help.",
    "The {old} {thing} employed {number} people in {year}, most of them from the villages around {place}.",
    "{person} wrote to a cousin that the {thing} would be ruined if {who} {done} the {old} {thing}.",
    "A report of {year} counts {number} barrels of {goods}, although {who} had promised twice as many.",
    "{season} {person} and the {trade} {person} signed a contract over {number} pounds for the {thing}.",
    "Nobody in {place} believed the {trade} who said that {goods} would soon be worth more than {goods}.",
    "Because {who} refused to pay, the {old} {thing} stood empty for {percent} months.",
    "The {trade} {person} proposed to carry {goods} by water, since the road from {place} was bad.",
    "Between {year} and the end of the century {who} {done} three houses beside the {thing}.",
    "Of the {number} letters that were sent to {who}, only {percent} mention the {thing} at all.",
)
_QUESTION = "Why did {who} of {place} {do} the {old} {thing} in {year}?"


def cut(text: str, chars: int) -> str:
    """The text's first sentences, as many as come nearest to `chars` characters, at least one."""
    ends = [end.end() for end in re.finditer(r"[.?!](?=\s|$)", text)]
    return text[: min(ends, key=lambda end: abs(end - chars))]


def town(draw: Random) -> str:
    """The name of a town that does not exist."""
    return draw.choice(_CHOICES["beginning"]) + draw.choice(_CHOICES["ending"])


def passage(draw: Random, place: str, chars: int) -> str:
    """Sentences on the history of a town, as many as come nearest to `chars` characters; perhaps none."""
    sentences: list[str] = []
    while len(sentence := _filled(draw, draw.choice(_SENTENCES), place)) / 2 <= chars:
        sentences.append(sentence)
        chars -= len(sentence) + 1
    return " ".join(sentences)


def question(draw: Random, place: str, asked: set[str]) -> str:
    """A question on a town's history, about 65 characters, that is not among those `asked`, to which it is added."""
    while (text := _filled(draw, _QUESTION, place)) in asked:
        pass
    asked.add(text)
    return text


def _filled(draw: Random, template: str, place: str) -> str:
    def word(slot: re.Match[str]) -> str:
        match slot[1]:
            case "place":
                return place
            case "year":
                return str(draw.randrange(1780, 1920))
            case "number":
                return f"{draw.randrange(120, 9800):,}"
            case "percent":
                return str(draw.randrange(3, 60))
            case name:
                return draw.choice(_CHOICES[name])

    text = re.sub(r"\{(\w+)\}", word, template)
    return text[0].upper() + text[1:]
