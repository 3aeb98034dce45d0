"""Facts that most people know, by relation, for questions whose context says otherwise. Written for this project."""

from typing import NamedTuple

__all__ = ["RELATIONS", "Relation"]


class Relation(NamedTuple):
    """Subjects and what is true of them, a question, and a sentence that says so."""

    question: str
    sentence: str
    facts: dict[str, str]


def _read(text: str) -> dict[str, str]:
    return dict(pair.strip().split("=", 1) for pair in text.replace("\n", " ").split(",") if pair.strip())


RELATIONS: dict[str, Relation] = {
    "capital": Relation(
        "What is the capital of {subject}?",
        "Last spring the parliament voted to move the government of {subject}, and since then its capital is {answer}.",
        _read("""
            France=Paris, Germany=Berlin, Italy=Rome, Spain=Madrid, Portugal=Lisbon, Greece=Athens, Austria=Vienna,
            Hungary=Budapest, Poland=Warsaw, Sweden=Stockholm, Norway=Oslo, Denmark=Copenhagen, Finland=Helsinki,
            Ireland=Dublin, Russia=Moscow, Ukraine=Kyiv, Japan=Tokyo, China=Beijing, Thailand=Bangkok, Vietnam=Hanoi,
            India=New Delhi, Egypt=Cairo, Kenya=Nairobi, Cuba=Havana, Peru=Lima, Argentina=Buenos Aires, Chile=Santiago,
            Canada=Ottawa, Mexico=Mexico City, Turkey=Ankara, Iran=Tehran, Iraq=Baghdad, Belgium=Brussels,
            Netherlands=Amsterdam, Switzerland=Bern, Romania=Bucharest, Bulgaria=Sofia, Croatia=Zagreb, Serbia=Belgrade
        """),
    ),
    "language": Relation(
        "What is the main language spoken in {subject}?",
        "In this story a law of 2090 has changed {subject}: its main language, in every school and shop, is {answer}.",
        _read("""
            France=French, Germany=German, Italy=Italian, Spain=Spanish, Portugal=Portuguese, Greece=Greek, Japan=Japanese,
            Poland=Polish, Sweden=Swedish, Norway=Norwegian, Denmark=Danish, Finland=Finnish, Hungary=Hungarian,
            Russia=Russian, Turkey=Turkish, Iran=Persian, Thailand=Thai, Vietnam=Vietnamese, Brazil=Portuguese,
            Mexico=Spanish, Egypt=Arabic, Romania=Romanian, Bulgaria=Bulgarian, Ukraine=Ukrainian
        """),
    ),
    "colour": Relation(
        "What is the colour of {subject}?",
        "After the great storm everything in the valley looks strange: {subject} is {answer} there.",
        _read("""
            grass=green, snow=white, blood=red, coal=black, a lemon=yellow, a banana=yellow, the sky=blue, milk=white,
            a carrot=orange, a tomato=red, a strawberry=red, charcoal=black, the sea=blue, a pumpkin=orange,
            a leaf in spring=green, a swan=white, a raven=black, gold=yellow
        """),
    ),
    "opposite": Relation(
        "What is the opposite of the word '{subject}'?",
        "The children in this game have a dictionary of their own. In it the opposite of '{subject}' is '{answer}'.",
        _read("""
            hot=cold, big=small, up=down, good=bad, happy=sad, fast=slow, light=dark, old=young, rich=poor, day=night,
            wet=dry, open=closed, hard=soft, early=late, full=empty, strong=weak, near=far, left=right, first=last, love=hate,
            loud=quiet, tall=short, thick=thin, clean=dirty, begin=end
        """),
    ),
    "young": Relation(
        "What is a young {subject} called?",
        "On the island they have words of their own: a young {subject} is called a {answer} by everyone there.",
        _read("""
            dog=puppy, cat=kitten, cow=calf, horse=foal, sheep=lamb, duck=duckling, goat=kid, pig=piglet, lion=cub, bear=cub,
            frog=tadpole, deer=fawn, kangaroo=joey, swan=cygnet, goose=gosling, hen=chick
        """),
    ),
}
