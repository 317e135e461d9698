"""Race, as perceived: FairFace's categories, and the coarser ones of other face data sets.

UTKFace's `Others` holds whoever is none of its four named categories, "like Hispanic, Latino,
Middle Eastern"; the sets with four categories leave these persons out.
"""

from facescan.attributes import Attribute, Example, LabelSet, View
from facescan.types import FinishReason, Outcome

_MERGES = {
    "White": "White",
    "Black": "Black",
    "Latino_Hispanic": "Latino_Hispanic",
    "East Asian": "Asian",
    "Southeast Asian": "Asian",
    "Indian": "Indian",
    "Middle Eastern": "Middle Eastern",
}

_TO_UTKFACE = {
    "White": "White",
    "Black": "Black",
    "Asian": "Asian",
    "Indian": "Indian",
    "Latino_Hispanic": "Others",
    "Middle Eastern": "Others",
}
_TO_4 = {label: label for label in ("White", "Black", "Asian", "Indian")}

_SYNONYMS = {
    "caucasian": "White",
    "european": "White",
    "european american": "White",
    "african": "Black",
    "african american": "Black",
    "afro american": "Black",
    "afro caribbean": "Black",
    "non hispanic white": "White",
    "non hispanic black": "Black",
    "latino": "Latino_Hispanic",
    "latina": "Latino_Hispanic",
    "latinx": "Latino_Hispanic",
    "latin american": "Latino_Hispanic",
    "latin america": "Latino_Hispanic",
    "latin": "Latino_Hispanic",
    "hispanic": "Latino_Hispanic",
    "latino or hispanic": "Latino_Hispanic",
    "latinx or hispanic": "Latino_Hispanic",
    "hispanic or latino": "Latino_Hispanic",
    "latinx hispanic": "Latino_Hispanic",
    "chinese": "East Asian",
    "japanese": "East Asian",
    "korean": "East Asian",
    "eastern asian": "East Asian",
    "east asia": "East Asian",
    "southeast asia": "Southeast Asian",
    "south east asia": "Southeast Asian",
    "south east asian": "Southeast Asian",
    "southeastern asian": "Southeast Asian",
    "filipino": "Southeast Asian",
    "indonesian": "Southeast Asian",
    "thai": "Southeast Asian",
    "vietnamese": "Southeast Asian",
    "south asian": "Indian",
    "asian indian": "Indian",
    "arab": "Middle Eastern",
    "arabic": "Middle Eastern",
    "north african": "Middle Eastern",
    "iranian": "Middle Eastern",
    "persian": "Middle Eastern",
    "middle east": "Middle Eastern",
    "m eastern": "Middle Eastern",
}

_RACE_7 = LabelSet(
    name="race-7",
    labels=tuple(_MERGES),
    synonyms=_SYNONYMS,
    source="FairFace, the seven categories of its label files",
)
_SYNONYMS_6 = {
    **{phrase: _MERGES[label] for phrase, label in _SYNONYMS.items()},
    "east asian": "Asian",
    "southeast asian": "Asian",
    "asia": "Asian",
    "asian american": "Asian",
    "oriental": "Asian",
}
_RACE_6 = LabelSet(
    name="race-6",
    labels=("White", "Black", "Latino_Hispanic", "Asian", "Indian", "Middle Eastern"),
    synonyms=_SYNONYMS_6,
    source="FairFace with East and Southeast Asian merged, as in arXiv 2410.24148",
)
_RACE_UTKFACE = LabelSet(
    name="race-utkface",
    labels=("White", "Black", "Asian", "Indian", "Others"),
    synonyms={
        **{phrase: _TO_UTKFACE[label] for phrase, label in _SYNONYMS_6.items()},
        "latino hispanic": "Others",
        "middle eastern": "Others",
        "latinx or hispanic or middle eastern": "Others",
        "latino or hispanic or middle eastern": "Others",
        "latinx hispanic middle eastern": "Others",
        "other": "Others",
    },
    source="UTKFace, codes 0 to 4; views into it as arXiv 2410.24148 is naturally read",
)
_RACE_4 = LabelSet(
    name="race-4",
    labels=tuple(_TO_4),
    synonyms={phrase: label for phrase, label in _SYNONYMS_6.items() if label in _TO_4},
    source="FairFace's second published model, which knows four categories",
)

_THINGS = (
    "hairs?|haired|hairstyle|haircut|beards?|bearded|moustache|mustache|stubble|goatee|sideburns"
    "|bangs|ponytail|braids?|dread(?:lock)?s|locks|curls|afro|wig|eyes?|eyed|pupils?|irises"
    "|eyebrows?|brows|lashes|eyelashes|lips?|lipstick|lipgloss|teeth|nails?|nail polish|make ?up"
    "|eye ?liner|eye ?shadow|mascara|paint|face paint|powder|t ?shirts?|shirts?|shirted|polo"
    "|blouse|sweater|sweatshirt|hoodie|jacket|blazer|cardigan|pullover|turtleneck|jersey|vest"
    "|tunic|tee|coat|suit|suited|tuxedo|tie|bow ?tie|dress|gown|robes?|skirt|sari|saree|kimono"
    "|uniform|top|tank top|bra|bikini|swimsuit|pants|trousers|jeans|shorts|leggings|socks|shoes"
    "|boots|sneakers|gloves?|belt|apron|outfit|attire|clothes|clothing|garments?|clad|dressed"
    "|collars?|collared|sleeves?|straps?|buttons?|lace|leather|fur|fabric|cloth|hats?|caps?"
    "|beanie|helmet|hood|hooded|scarf|bandana|headscarf|hijab|niqab|burqa|veil|turban|headband"
    "|headwear|headdress|masks?|masked|bag|backpack|purse|ribbon|bow|glasses|sunglasses"
    "|eyeglasses|spectacles|rimmed|goggles|headphones|earphones|earbuds|headset|microphone|phone"
    "|camera|watch|rings?|necklace|earrings?|bracelet|chain|pendant|beads|pearls?|frames?"
    "|background|wall|backdrop|border|curtains?|door|screen|board|car|chair|couch|sofa|table|desk"
    "|blanket|pillow|towel|sheet|paper|flowers?|stripes?|striped|dots?|spots?|lines?|text|letters"
    "|lettering|logo|dogs?|cats?|horse|image|photo|photograph|picture|portrait"
)
"""Of which a colour is said: clothes, hair, what stands around."""

_COLOURS = (
    "(?:(?:dark|light) )?(?:black|white|brown|gr[ae]y|blue|red|green|yellow|blonde?|pink|purple"
    "|orange|beige|silver|gold|golden|tan|navy|cream|auburn)"
)
_COLOUR = f"(?:black|white|brown)(?:(?: ?/ ?| (?:and|or|to|&) ){_COLOURS}){{0,3}}"
_NO_VERB = (
    "(?!(?:is|are|was|were|be|being|as|and|or|he|she|they|it|who|that|looks?|appears?|seems?|like"
    "|likely|probably|with|in|of|(?:wo)?m[ae]n|(?:fe)?males?|persons?|people|individual|boy|girl"
    r"|lady|guy)\b)"
)
_THE = "(?:(?:an?|the|his|her|their|its|some|all|only|mostly) )?"
_POSSESSOR = r"(?:his|her|their|its|the|\w+'s|the \w+'s)"
_OF_PEOPLE = (
    "(?:(?:wo)?m[ae]n|(?:fe)?males?|persons?|people|individuals?|boys?|girls?|lad(?:y|ies)|guys?"
    r"|gentlem[ae]n|child|children|kids?|baby|babies|infant|toddler|teen\w*|adults?|youth"
    "|mother|father|parents?|american|african|european|british|caucasian|hispanic|latin[aox]?"
    "|race|racial|ethnic|ethnicity|descent|ancestry|heritage|origins?|category|group|label|option"
    "|features|appearance|skin|skinned|complexion)"
)
_NOT_OF_PEOPLE = rf"(?! (?:(?!(?:an?|the|his|her|their) ){_NO_VERB}\w+ ){{0,3}}{_OF_PEOPLE}\b)"
_ASIDES = (
    "in black and white",
    "(?:image|photo|photograph|picture) is black and white",
    # "black or brown hair", "a white haired man"
    f"{_COLOUR} ... (?:{_THINGS})",
    # "wearing all black", "a man in white"
    rf"(?:wear(?:s|ing)?|wore|dressed in|clad in) {_THE}(?:{_NO_VERB}\w+ ){{0,3}}{_COLOUR}"
    f"{_NOT_OF_PEOPLE}",
    f"in {_THE}{_COLOUR}{_NOT_OF_PEOPLE}",
    # "has a black bruise": whatever it is
    f"(?:has|have|having|had|with|holding|holds|carrying|against|behind) {_THE}"
    rf"(?:{_NO_VERB}\w+ ){{0,2}}{_COLOUR}{_NOT_OF_PEOPLE}"
    rf"(?= (?!(?:on|by|for|to|at|from|but|based|due|because|than|rather)\b){_NO_VERB}\w)",
    # "her hair is black", "the background of the photo appears to be white"; not "the man in the
    # hat is White"
    f"(?:(?:(?<=^)|(?<=^ )|(?<=[,:*-] ))(?:{_POSSESSOR} )?"
    "|(?:(?<=and )|(?<=as )|(?<=that )|(?<=while )|(?<=since )|(?<=because ))"
    f"{_POSSESSOR} )"
    rf"(?:{_NO_VERB}\w+ ){{0,2}}(?:{_THINGS})(?: colou?r)?"
    "(?: (?:of|in) the (?:image|photo|photograph|picture|portrait))?"
    "(?: ?:| (?:is|are|was|were|looks?|appears?|seems?)(?: to be)?) "
    rf"(?:(?:\w+ly|long|short|curly|straight|wavy|thick|thin|dark|light|solid|plain|very|all"
    f"|and|or|{_COLOURS}),? ){{0,4}}{_COLOUR}{_NOT_OF_PEOPLE}",
    "whites of (?:his|her|their|the) eyes",
    # "the others", "other features", "other than White"
    "(?:the|any|each|every|no) others?",
    r"other(?= (?!(?:races?|racial|ethnic|ethnicit(?:y|ies)|category|group|or)\b)\w)",
)

ATTRIBUTE = Attribute(
    name="race",
    noun="race",
    also_called=("ethnicity",),
    label_sets=(_RACE_7, _RACE_6, _RACE_UTKFACE, _RACE_4),
    views=(
        View("race-7", "race-6", _MERGES),
        View("race-7", "race-utkface", {n: _TO_UTKFACE[six] for n, six in _MERGES.items()}),
        View("race-6", "race-utkface", _TO_UTKFACE),
        View("race-7", "race-4", {n: six for n, six in _MERGES.items() if six in _TO_4}),
        View("race-6", "race-4", _TO_4),
        View("race-utkface", "race-4", _TO_4),
    ),
    off_list=(
        *("mixed", "mixed race", "biracial", "multiracial", "other", "human", "human race"),
        *("american indian", "native american", "indigenous", "west indian", "central asian"),
        *("pacific islander", "hawaiian", "polynesian", "aboriginal", "jewish", "american"),
        *("brown", "asian or pacific islander", "eurasian"),
        # A nation is no category; the few that stand for one are synonyms.
        *("mexican", "brazilian", "argentinian", "colombian", "peruvian", "chilean", "venezuelan"),
        *("cuban", "puerto rican", "dominican", "guatemalan", "salvadoran", "spanish", "spaniard"),
        *("pakistani", "bangladeshi", "nepali", "nepalese", "sri lankan", "afghan", "turkish"),
        *("turk", "kurdish", "israeli", "lebanese", "syrian", "iraqi", "saudi", "jordanian"),
        *("palestinian", "yemeni", "egyptian", "moroccan", "algerian", "tunisian", "libyan"),
        *("nigerian", "ghanaian", "kenyan", "ethiopian", "somali", "sudanese", "south african"),
        *("jamaican", "haitian", "caribbean", "mongolian", "taiwanese", "tibetan", "malaysian"),
        *("malay", "singaporean", "cambodian", "burmese", "laotian", "kazakh", "uzbek"),
        *("british", "english", "scottish", "irish", "french", "german", "italian", "greek"),
        *("russian", "ukrainian", "portuguese", "dutch", "swedish", "australian", "canadian"),
    ),
    asides=_ASIDES,
    examples=(
        Example("White", "race-7", Outcome.ANSWERED, "White"),
        Example("black.", "race-7", Outcome.ANSWERED, "Black"),
        Example("Southeast Asian", "race-7", Outcome.ANSWERED, "Southeast Asian"),
        Example("The person is South-East Asian.", "race-7", Outcome.ANSWERED, "Southeast Asian"),
        Example("EAST ASIAN", "race-7", Outcome.ANSWERED, "East Asian"),
        Example("Latino_Hispanic", "race-7", Outcome.ANSWERED, "Latino_Hispanic"),
        Example("Latinx or Hispanic", "race-7", Outcome.ANSWERED, "Latino_Hispanic"),
        Example("Hispanic/Latino", "race-6", Outcome.ANSWERED, "Latino_Hispanic"),
        Example("M.Eastern", "race-7", Outcome.ANSWERED, "Middle Eastern"),
        Example("She appears to be African-American", "race-7", Outcome.ANSWERED, "Black"),
        Example("Caucasian (White)", "race-7", Outcome.ANSWERED, "White"),
        Example("East Asian", "race-6", Outcome.ANSWERED, "Asian"),
        Example("A black and white photo of an Indian man", "race-7", Outcome.ANSWERED, "Indian"),
        Example("She has black hair and is East Asian.", "race-7", Outcome.ANSWERED, "East Asian"),
        Example("Not White, but Middle Eastern.", "race-7", Outcome.ANSWERED, "Middle Eastern"),
        Example('```json\n{"race": "Indian"}\n```', "race-7", Outcome.ANSWERED, "Indian"),
        Example('{"Race/Ethnicity": "South Asian"}', "race-7", Outcome.ANSWERED, "Indian"),
        Example("Hispanic or Latino", "race-utkface", Outcome.ANSWERED, "Others"),
        Example("Other.", "race-utkface", Outcome.ANSWERED, "Others"),
        Example("Other", "race-7", Outcome.OFF_LIST),
        Example("Southeast Asian", "race-4", Outcome.ANSWERED, "Asian"),
        Example("The person looks Middle Eastern.", "race-4", Outcome.OFF_LIST),
        Example("Asian", "race-7", Outcome.OFF_LIST),
        Example("Mixed", "race-7", Outcome.OFF_LIST),
        Example("American Indian", "race-7", Outcome.OFF_LIST),
        Example("White or Middle Eastern", "race-7", Outcome.AMBIGUOUS),
        Example("East Asian, Southeast Asian", "race-7", Outcome.AMBIGUOUS),
        Example("Not Black.", "race-7", Outcome.UNPARSED),
        Example("This does not look like a Black or White person", "race-7", Outcome.UNPARSED),
        Example("Asian, specifically East Asian", "race-7", Outcome.ANSWERED, "East Asian"),
        Example("White or Asian", "race-7", Outcome.AMBIGUOUS),
        Example("I would not say that she is White or Black", "race-7", Outcome.UNPARSED),
        Example("non-white", "race-7", Outcome.UNPARSED),
        Example("She has black hair.", "race-7", Outcome.UNPARSED),
        Example("Caucasianish", "race-7", Outcome.UNPARSED),
        Example("", "race-7", Outcome.UNPARSED),
        Example(
            "I'm sorry, but I can't identify the race of people in photographs.",
            "race-7",
            Outcome.REFUSED,
        ),
        Example(
            "As an AI, I can't classify people by race; however, the person appears to be White.",
            "race-7",
            Outcome.ANSWERED,
            "White",
        ),
        Example("I cannot determine whether the person is White.", "race-7", Outcome.ABSTAINED),
        Example("none", "race-7", Outcome.ABSTAINED),
        Example("Southeast", "race-7", Outcome.TRUNCATED, finish_reason=FinishReason.LENGTH),
        Example("White or B", "race-7", Outcome.TRUNCATED, finish_reason=FinishReason.LENGTH),
        Example(
            "I'm sorry, but I can't help with ident",
            "race-7",
            Outcome.REFUSED,
            finish_reason=FinishReason.LENGTH,
        ),
        Example(
            "Indian. The person has", "race-7", Outcome.ANSWERED, "Indian", FinishReason.LENGTH
        ),
    ),
)
