"""A few words that two people compare, for bytes that two machines have."""

from __future__ import annotations

from typing import Final

_WORDS: Final = """
acorn almond anchor anvil apple apricot arrow aspen avocado badger bamboo banana
barley basil basket beaver bicycle birch bison blanket bottle brick broom bucket
button cabin cactus camel candle canoe carpet castle cedar celery chair cherry
chimney circle clock clover cobra cocoa compass condor copper cotton crab crayon
cricket crow curtain daisy deer diamond dingo dolphin donkey drum eagle engine
falcon feather fennel fern ferret fiddle finch flag flute fountain fox frog garlic
gecko ginger goose gorilla grape guitar hammer hamster harbour hawk hazel helmet
heron hippo horse hyena ibex iguana ink island ivy jackal jelly jigsaw juniper kayak
kettle kitchen kite kiwi koala ladder lagoon lake lantern lavender lemon lemur
lentil leopard library lighthouse lilac lion lizard llama lobster lotus lumber lynx
magnet magpie mango maple marble meadow melon mint mirror monkey moose moss mountain
muffin museum mushroom napkin needle nettle newt nickel notebook novel nutmeg oak
ocean octopus olive onion orchid ostrich otter oven owl oxygen oyster paddle palm
panda panther papaya parade parrot parsley peach pelican pencil penguin pepper piano
picnic pigeon pillow pirate planet plum pocket potato pretzel prism puma pumpkin
puppet puzzle pyramid quartz quilt quince rabbit radish rainbow raisin raven ribbon
rice river robot rocket saddle saffron salmon scarf sesame shark sheep shovel silver
spinach spoon squirrel statue stork sugar swan sword table teapot temple thimble
thistle thunder tiger toad tomato tower tractor trout trumpet tulip tunnel turtle
umbrella valley vanilla velvet violin volcano wagon wallet walnut walrus weasel
whale wheel whistle willow window winter wolf wombat yacht zebra zipper
"""
WORDS: Final = tuple(_WORDS.split())
"""256 words, one for each byte; no two begin with the same four letters."""


def words_of(data: bytes) -> str:
    """Return the words for these bytes, as they are shown and typed."""
    return "-".join(WORDS[byte] for byte in data)
