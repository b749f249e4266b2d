"""What gives a value of the small world away without naming it: part of the benchmark's table of entailments.

General knowledge about the values, a few cues each: what such people do, what stands in such a city, where they are from.
A cue counts when all its words stand in one clause, in any order and with any endings.
"""

from typing import Final

from rmuse_interp.data.world import people as w

CITIES: Final[dict[str, tuple[str, ...]]] = {
    "Lisbon": ("capital of Portugal", "Portuguese capital", "Belém Tower", "Alfama"),
    "Porto": ("port wine cellars", "mouth of the Douro", "Ribeira quarter Douro", "Dom Luís bridge"),
    "Kyoto": ("Golden Pavilion", "Fushimi Inari", "old imperial capital of Japan", "Gion"),
    "Osaka": ("Dotonbori", "Umeda", "takoyaki home town", "Tsutenkaku"),
    "Lyon": ("Rhône meets Saône", "Fourvière", "bouchons", "Croix-Rousse"),
    "Paris": ("capital of France", "French capital", "Eiffel Tower", "Louvre", "Parisian", "city of light"),
    "Munich": ("capital of Bavaria", "Bavarian capital", "Oktoberfest", "Marienplatz"),
    "Berlin": (
        "capital of Germany",
        "German capital",
        "Brandenburg Gate",
        "Reichstag",
        "Kreuzberg",
        "Berliner",
    ),
    "Madrid": ("capital of Spain", "Spanish capital", "Prado", "Puerta del Sol", "Retiro park"),
    "Seville": ("Giralda", "capital of Andalusia", "Andalusian capital", "Triana"),
    "Rome": (
        "capital of Italy",
        "Italian capital",
        "Colosseum",
        "Trevi fountain",
        "Eternal City",
        "Roman by residence",
    ),
    "Milan": ("La Scala", "capital of Lombardy", "Milanese", "San Siro", "Lombard capital"),
    "Oslo": ("capital of Norway", "Norwegian capital", "Holmenkollen", "Vigeland park"),
    "Bergen": ("Bryggen", "Mount Fløyen", "gateway to the fjords", "Hanseatic wharf Norway"),
    "Cairo": ("capital of Egypt", "Egyptian capital", "pyramids of Giza", "Khan el-Khalili"),
    "Luxor": ("Valley of the Kings", "Karnak", "ancient Thebes"),
    "Lima": ("capital of Peru", "Peruvian capital", "Miraflores"),
    "Cusco": ("Inca capital", "capital of the Incas", "Sacsayhuamán", "gateway to Machu Picchu"),
    "Delhi": ("capital of India", "Indian capital", "Red Fort", "Chandni Chowk", "Qutub Minar"),
    "Mumbai": ("Bombay", "Bollywood", "Gateway of India", "Marine Drive"),
    "Toronto": ("CN Tower", "capital of Ontario", "Ontario's capital"),
    "Montreal": ("Mount Royal", "largest city of Quebec", "Plateau Quebec"),
    "Sydney": ("Harbour Bridge", "Bondi", "capital of New South Wales", "Opera House harbour"),
    "Perth": ("capital of Western Australia", "Swan River", "Fremantle next door"),
}
OCCUPATIONS: Final[dict[str, tuple[str, ...]]] = {
    "baker": (
        "bakes bread",
        "kneads dough",
        "bakery for a living",
        "oven loaves",
        "owns bakery",
        "runs bakery",
    ),
    "pilot": ("flies planes", "flies airliners", "flies aircraft", "lands jets", "sits in the cockpit"),
    "nurse": (
        "cares for patients on ward",
        "night shifts hospital ward",
        "assists doctors",
        "changes bandages",
    ),
    "lawyer": (
        "represents clients in court",
        "pleads court",
        "practises law",
        "attorney",
        "solicitor",
        "defends clients",
    ),
    "painter": ("paints for a living", "easel studio", "sells canvases", "paints pictures"),
    "farmer": (
        "ploughs fields",
        "milks cows",
        "grows wheat",
        "harvests crops",
        "runs farm",
        "tractor fields",
    ),
    "chemist": (
        "mixes reagents",
        "synthesises compounds",
        "laboratory molecules",
        "studies chemical reactions",
    ),
    "teacher": (
        "teaches pupils",
        "teaches children",
        "marks homework",
        "classroom for a living",
        "teaches class",
    ),
    "plumber": ("mends pipes", "fixes leaking taps", "repairs pipes", "unblocks drains", "fixes pipes"),
    "tailor": ("sews suits", "makes suits to measure", "alters dresses", "cuts suits", "hems trousers"),
    "dentist": ("fills cavities", "pulls teeth", "drills teeth", "treats teeth", "checks teeth"),
    "singer": ("sings for a living", "sings on stage", "vocalist", "sings concerts", "sings opera"),
    "judge": (
        "passes sentences in court",
        "presides over trials",
        "presides court",
        "hands down verdicts",
        "gavel",
    ),
    "surgeon": ("operates on patients", "performs operations", "scalpel", "operating theatre"),
    "gardener": ("prunes hedges", "plants flower beds", "tends gardens", "mows lawns", "trims roses"),
    "librarian": ("lends books", "catalogues books", "works in a library", "shelves books"),
    "carpenter": ("makes furniture of wood", "saws planks", "planes wood", "builds furniture", "joiner"),
    "journalist": (
        "writes for a newspaper",
        "reports for a newspaper",
        "reporter",
        "writes news articles",
        "interviews politicians",
    ),
    "butcher": ("cuts meat", "sells sausages", "carves meat", "sells meat"),
    "translator": (
        "translates books",
        "translates texts",
        "renders texts into another language",
        "translates novels",
    ),
}
HOBBIES: Final[dict[str, tuple[str, ...]]] = {
    "chess": ("checkmate", "queen's gambit", "rooks bishops", "sixty-four squares"),
    "fencing": ("foil and mask", "épée", "sabre duels", "lunges with a foil"),
    "surfing": ("rides waves", "surfboard", "catches waves"),
    "knitting": ("knits", "needles wool", "makes scarves wool", "yarn needles"),
    "archery": ("bow and arrow", "shoots arrows", "bullseye arrows"),
    "origami": ("folds paper", "paper cranes", "folding paper"),
    "cycling": ("rides bike", "racing bike", "pedals", "bicycle tours", "rides bicycle"),
    "fishing": ("rod and line", "angling", "catches trout", "rod at the lake", "catches fish"),
    "karate": ("black belt kata", "dojo kata", "karateka"),
    "hiking": ("walks mountain trails", "hikes", "long walks in the mountains", "trails boots"),
    "judo": ("throws opponents on the mat", "judoka", "ippon"),
    "pottery": ("throws clay", "potter's wheel", "makes clay pots", "kiln", "clay bowls"),
    "rowing": ("oars", "sculls", "rows on the river", "rows boat"),
    "skiing": ("skis", "slalom", "downhill slopes snow", "pistes"),
    "yoga": ("sun salutation", "downward dog", "lotus position", "asanas"),
    "astronomy": (
        "stargazing",
        "looks at stars telescope",
        "watches planets telescope",
        "telescope at night",
    ),
    "juggling": ("juggles", "keeps balls in the air", "three balls in the air"),
    "climbing": ("climbs rocks", "bouldering", "ropes and harness", "climbs walls"),
    "dancing": ("tango", "waltz", "salsa", "dances", "ballroom"),
    "poetry": ("writes poems", "sonnets", "verses", "composes haiku"),
}
PETS: Final[dict[str, tuple[str, ...]]] = {
    "cat": ("kitten", "meows", "purrs", "litter box", "tomcat", "feline"),
    "dog": (
        "puppy",
        "barks",
        "walks poodle",
        "poodle",
        "dachshund",
        "terrier",
        "labrador",
        "kennel",
        "canine",
    ),
    "parrot": ("cockatoo", "macaw", "talking bird", "bird that talks"),
    "rabbit": ("bunny", "bunnies", "long-eared hutch", "hutch"),
    "turtle": ("tortoise", "shelled reptile", "terrapin"),
    "hamster": ("rodent running wheel", "cheek pouches", "small rodent wheel"),
    "goldfish": ("orange fish in a bowl", "fish bowl", "golden fish"),
    "lizard": ("iguana", "bearded dragon", "chameleon"),
    "pony": ("small horse", "rides little horse", "Shetland stable"),
    "ferret": ("tame polecat", "domesticated polecat"),
    "canary": ("yellow songbird", "yellow singing bird"),
    "gecko": ("small reptile that climbs glass", "reptile sticky feet", "sticky toes"),
    "hedgehog": ("spiny", "prickly animal", "spines curl ball"),
    "snake": ("python", "boa", "legless reptile", "corn adder"),
    "duck": ("quacks", "mallard", "quacking"),
    "goat": ("billy kid horns", "bleats", "goatling"),
}


def tables(world: w.World) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Aliases (name → surname) and entailments (city → country, year ↔ age, cue → value), as benchmark.json has them."""
    entails: dict[str, list[str]] = {city: [country] for city, country in w.CITIES.items()}
    for person in world.everyone:
        year = person.attributes["birth_year"]
        entails[year] = [str(w.YEAR - int(year))]
        entails[str(w.YEAR - int(year))] = [year]
    for values in (CITIES, OCCUPATIONS, HOBBIES, PETS):
        for value, cues in values.items():
            for cue in cues:
                entails.setdefault(cue, []).append(value)
    return {p.name: [p.name.split()[1]] for p in world.everyone}, entails
