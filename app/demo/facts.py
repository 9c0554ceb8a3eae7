"""What the demo language talks about: small questions whose answer anybody can check at a glance.

A `Topic` is a few ways to ask, a few ways to answer, and its facts. In the patterns `{x}` and `{y}` are the halves of
a fact's key (split at "|") and `{a}` is the answer. None of them ever starts a sentence: written in one way only, a
fact is one thing to learn for a very small model and not two. A wrong answer is another answer of the topic, or one of
`wrong` where the topic lists its own, so that it is plainly wrong and never merely odd.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, eq=False)
class Topic:
    """One kind of question. `full` are answers in whole sentences, `short` the same in a word or two."""

    name: str
    questions: tuple[str, ...]
    full: tuple[str, ...]
    short: tuple[str, ...]
    facts: Mapping[str, tuple[str, ...]]
    """key → every answer that counts as right."""
    wrong: tuple[str, ...] = ()


JUST_THE_WORD = ("It is {a}.", "Just {a}.")
"""Short answers that suit every topic whose answers need no article."""


def _table(text: str) -> dict[str, tuple[str, ...]]:
    """Lines of `answer: key, key, …` (or, for several right answers, `a / b: key`) as key → answers."""
    facts: dict[str, tuple[str, ...]] = {}
    for line in text.strip().splitlines():
        answers, keys = line.split(":")
        for key in keys.split(","):
            facts[key.strip()] = tuple(answer.strip() for answer in answers.split("/"))
    return facts


def _both_ways(text: str) -> dict[str, tuple[str, ...]]:
    """`hot-cold, …` as facts in both directions."""
    pairs = [pair.strip().split("-") for pair in text.split(",")]
    return {one: (other,) for a, b in pairs for one, other in ((a, b), (b, a))}


def _circle(names: str) -> dict[str, tuple[str, ...]]:
    """What follows each name of a circle such as the days of the week."""
    circle = names.split()
    return {name: (after,) for name, after in zip(circle, circle[1:] + circle[:1], strict=True)}


COLOURS = Topic(
    "colours",
    ("What colour is {x}?", "What is the colour of {x}?", "Tell me the colour of {x}."),
    ("The colour of {x} is {a}.", "You will find that it is {a}."),
    JUST_THE_WORD,
    _table("""
        green: grass, a frog, a cucumber
        blue: the sky, the sea
        white: snow, milk
        black: coal, a crow
        yellow: a lemon, a banana
        red: a tomato, blood
        orange: a carrot, a pumpkin
        brown: chocolate
        grey: an elephant
        purple: a plum
        pink: a flamingo"""),
)
OPPOSITES = Topic(
    "opposites",
    ("What is the opposite of {x}?", "Which word means the opposite of {x}?", "Give me the opposite of {x}."),
    ("The opposite of {x} is {a}.", "The word you want is {a}."),
    JUST_THE_WORD,
    _both_ways("""hot-cold, big-small, fast-slow, happy-sad, wet-dry, loud-quiet, hard-soft, full-empty, early-late,
        rich-poor"""),
)
YOUNG = Topic(
    "young animals",
    ("What is a baby {x} called?", "What do you call a baby {x}?", "Give me the word for a baby {x}."),
    ("The word for a baby {x} is {a}.", "People call it a {a}."),
    ("It is a {a}.", "Just a {a}."),
    _table("""
        kitten: cat
        puppy: dog
        calf: cow
        foal: horse
        lamb: sheep
        piglet: pig
        duckling: duck
        chick: hen
        tadpole: frog
        cub: lion
        joey: kangaroo"""),
)
SOUNDS = Topic(
    "sounds",
    ("What does a {x} say?", "What sound does a {x} make?", "Tell me what a {x} says."),
    ("The sound of a {x} is {a}.", "You will hear it say {a}."),
    ("It says {a}.", "Just {a}."),
    _table("""
        moo: cow
        meow: cat
        woof: dog
        quack: duck
        baa: sheep
        oink: pig
        ribbit: frog
        roar: lion
        squeak: mouse
        neigh: horse
        buzz: bee"""),
)
SUMS = Topic(
    "sums",
    ("What is {x}?", "How much is {x}?", "Work out {x} for me."),
    ("The answer is {a}.", "That makes {a}."),
    JUST_THE_WORD,
    {f"{i} plus {j}": (str(i + j),) for i in range(1, 5) for j in range(1, 5)},
)
CAPITALS = Topic(
    "capitals",
    ("What is the capital of {x}?", "Which city is the capital of {x}?", "Name the capital of {x}."),
    ("The capital of {x} is {a}.", "The capital you want is {a}."),
    JUST_THE_WORD,
    _table("""
        Paris: France
        Rome: Italy
        Madrid: Spain
        Berlin: Germany
        Tokyo: Japan
        Cairo: Egypt
        Athens: Greece
        Oslo: Norway
        London: England
        Lima: Peru"""),
)
COUNTS = Topic(
    "counts",
    ("How many {x} {y}?", "Tell me how many {x} {y}.", "Count the {x} {y} for me."),
    ("There are {a} of them.", "The number is {a}."),
    JUST_THE_WORD,
    _table("""
        2: wheels|on a bicycle, legs|on a hen
        3: sides|on a triangle
        4: legs|on a dog, wheels|on a car, seasons|in a year
        5: fingers|on one hand
        6: legs|on an ant
        7: days|in a week, colours|in a rainbow
        8: legs|on a spider
        12: months|in a year, eggs|in a dozen"""),
)
DAYS = Topic(
    "days",
    ("Which day comes after {x}?", "Name the day after {x}.", "Tell me the day that comes after {x}."),
    ("The day after {x} is {a}.", "The next day is {a}."),
    JUST_THE_WORD,
    _circle("Monday Tuesday Wednesday Thursday Friday Saturday Sunday"),
)
JOBS = Topic(
    "jobs",
    ("Who {x}?", "Tell me who {x}.", "What do you call someone who {x}?"),
    ("That is the work of a {a}.", "You should ask a {a}."),
    ("It is a {a}.", "Just a {a}."),
    _table("""
        baker: bakes bread
        pilot: flies a plane
        teacher: teaches children
        barber: cuts hair
        mechanic: repairs cars
        farmer: grows vegetables
        dentist: looks after teeth
        painter: paints pictures
        writer: writes books
        tailor: makes suits
        plumber: mends water pipes
        sailor: sails a ship"""),
)
HOMES = Topic(
    "homes",
    ("Where does a {x} live?", "Tell me where a {x} lives.", "What is the home of a {x}?"),
    ("The home of a {x} is a {a}.", "You will find it in a {a}."),
    ("Just a {a}.", "In a {a}."),
    _table("""
        hive: bee
        nest: robin
        web: spider
        stable: horse
        sty: pig
        burrow: rabbit
        castle: king
        shell: snail"""),
)
NEEDS = Topic(
    "needs",
    ("What do I need to {x}?", "Tell me what I need to {x}.", "I want to {x}. What should I get?"),
    ("You will need {a}.", "You should get {a}."),
    ("Just {a}.", "Get {a}."),
    _table("""
        flour and eggs: bake a cake
        a pencil: draw a picture
        a spade: dig a hole
        scissors: cut paper
        a spoon: eat soup
        a toothbrush: brush my teeth
        a sponge: wash the dishes
        a stamp: post a letter
        a match: light a candle
        an umbrella: stay dry in the rain
        a broom: sweep the floor
        a ladder: climb onto the roof
        a camera: take a photograph
        a boat: cross the lake"""),
)
MEALS = Topic(
    "meals",
    ("What should I have for {x}?", "Suggest something for {x}.", "I am hungry. What is good for {x}?"),
    ("I suggest {a}.", "How about {a}?"),
    ("Just {a}.", "Try {a}."),
    _table("""
        porridge / toast and jam / pancakes: breakfast
        a cheese sandwich / a bowl of soup / a green salad: lunch
        roast chicken / vegetable stew / baked fish: dinner
        apple pie / ice cream / a slice of cake: dessert"""),
    ("a pair of socks", "a bag of nails", "an old newspaper", "a bar of soap", "wet sand"),
)
PRESENTS = Topic(
    "presents",
    ("What present should I give {x}?", "Suggest a present for {x}.", "I need a present for {x}. Any ideas?"),
    ("I suggest {a}.", "How about {a}?"),
    ("Just {a}.", "Try {a}."),
    _table("""
        a warm scarf / a box of chocolates / fresh flowers: my grandmother, my mother
        a good book / a board game / a box of chocolates: my best friend, my cousin
        a good book / a fountain pen / fresh flowers: my teacher"""),
    ("a bucket of mud", "an empty jar", "a broken chair", "a parking ticket", "one old shoe"),
)

TOPICS = (COLOURS, OPPOSITES, YOUNG, SOUNDS, SUMS, CAPITALS, COUNTS, DAYS, JOBS, HOMES, NEEDS, MEALS, PRESENTS)
