"""Emotion, as the face expresses it: AffectNet's eight categories, and the seven without contempt.

RAF-DB's seven categories are `emotion-7` under other words, which are synonyms here: a protocol
may offer `happiness` for `happy`, and a table says `map: {Happiness: happy}`.
"""

from facescan.attributes import Attribute, Example, LabelSet, View
from facescan.types import FinishReason, Outcome

_SYNONYMS = {
    "neutrality": "neutral",
    "calm": "neutral",
    "expressionless": "neutral",
    "emotionless": "neutral",
    "no emotion": "neutral",
    "no expression": "neutral",
    "happiness": "happy",
    "joy": "happy",
    "joyful": "happy",
    "cheerful": "happy",
    "delighted": "happy",
    "sadness": "sad",
    "unhappy": "sad",
    "sorrow": "sad",
    "sorrowful": "sad",
    "surprised": "surprise",
    "astonished": "surprise",
    "astonishment": "surprise",
    "shock": "surprise",
    "shocked": "surprise",
    "startled": "surprise",
    "fearful": "fear",
    "afraid": "fear",
    "scared": "fear",
    "frightened": "fear",
    "terrified": "fear",
    "disgusted": "disgust",
    "angry": "anger",
    "mad": "anger",
    "furious": "anger",
    "rage": "anger",
    "revulsion": "disgust",
    "contemptuous": "contempt",
    "disdain": "contempt",
    "disdainful": "contempt",
    "scorn": "contempt",
    "scornful": "contempt",
}

_EMOTION_8 = LabelSet(
    name="emotion-8",
    labels=("neutral", "happy", "sad", "surprise", "fear", "disgust", "anger", "contempt"),
    synonyms=_SYNONYMS,
    source="AffectNet, codes 0 to 7",
)
_EMOTION_7 = LabelSet(
    name="emotion-7",
    labels=_EMOTION_8.labels[:-1],
    synonyms={phrase: label for phrase, label in _SYNONYMS.items() if label != "contempt"},
    source="AffectNet-7, which leaves contempt out; RAF-DB (basic) and FER2013, in other words",
)

ATTRIBUTE = Attribute(
    name="emotion",
    noun="emotion",
    also_called=("expression", "facial expression"),
    label_sets=(_EMOTION_8, _EMOTION_7),
    views=(View("emotion-8", "emotion-7", {label: label for label in _EMOTION_7.labels}),),
    # A smile is something a face does; which emotion it shows is the question.
    off_list=(
        *("smile", "smiling", "laughing", "crying", "frowning", "serious", "confused"),
        *("confusion", "excited", "excitement", "pensive", "thoughtful", "bored", "tired"),
        *("annoyed", "irritated", "frustrated", "upset", "anxious", "worried", "concerned"),
        *("content", "relaxed", "amused", "proud", "curious", "love", "focused", "other"),
        *("smirk", "smirking", "stoic", "pain", "painful"),
    ),
    # What an assistant says of itself.
    asides=(
        *("i'm afraid", "i am afraid", "happy to help", "happy to assist", "happy to answer"),
        "glad to help",
    ),
    abstentions=("no visible emotion", "no clear emotion", "no discernible emotion"),
    examples=(
        Example("happy", "emotion-8", Outcome.ANSWERED, "happy"),
        Example("Happiness.", "emotion-8", Outcome.ANSWERED, "happy"),
        Example("The person looks angry", "emotion-8", Outcome.ANSWERED, "anger"),
        Example("unhappy", "emotion-8", Outcome.ANSWERED, "sad"),
        Example("Surprised!", "emotion-8", Outcome.ANSWERED, "surprise"),
        Example("'contempt'", "emotion-8", Outcome.ANSWERED, "contempt"),
        Example("The emotion is: neutral", "emotion-8", Outcome.ANSWERED, "neutral"),
        Example("A sad smile", "emotion-8", Outcome.ANSWERED, "sad"),
        Example("not happy but sad", "emotion-8", Outcome.ANSWERED, "sad"),
        Example("Neutral, with no sign of anger", "emotion-8", Outcome.ANSWERED, "neutral"),
        Example("Not only happy: happy and joyful", "emotion-8", Outcome.ANSWERED, "happy"),
        Example('{"emotion": "fear", "confidence": 0.8}', "emotion-8", Outcome.ANSWERED, "fear"),
        Example('{"expression": ["disgust"]}', "emotion-8", Outcome.ANSWERED, "disgust"),
        Example("Happiness", "emotion-7", Outcome.ANSWERED, "happy"),
        Example("Contempt.", "emotion-7", Outcome.OFF_LIST),
        Example("not happy", "emotion-8", Outcome.UNPARSED),
        Example("He doesn't look happy or surprised.", "emotion-8", Outcome.UNPARSED),
        Example("neither happy nor sad", "emotion-8", Outcome.UNPARSED),
        Example("Happy and surprised", "emotion-8", Outcome.AMBIGUOUS),
        Example("happy, sad", "emotion-8", Outcome.AMBIGUOUS),
        Example("smiling", "emotion-8", Outcome.OFF_LIST),
        Example("The person seems pensive.", "emotion-8", Outcome.OFF_LIST),
        Example("unhappyish qwrt", "emotion-8", Outcome.UNPARSED),
        Example("0.97", "emotion-8", Outcome.UNPARSED),
        Example("None", "emotion-8", Outcome.ABSTAINED),
        Example("There is no discernible emotion.", "emotion-8", Outcome.ABSTAINED),
        Example("I am not sure, perhaps fear", "emotion-8", Outcome.ABSTAINED),
        Example("The emotion is not visible.", "emotion-8", Outcome.ABSTAINED),
        Example("It's hard to tell if the person is sad.", "emotion-8", Outcome.ABSTAINED),
        Example("Sorry, I can't assist with that.", "emotion-8", Outcome.REFUSED),
        Example("I don't feel comfortable guessing emotions.", "emotion-8", Outcome.REFUSED),
        Example("happ", "emotion-8", Outcome.TRUNCATED, finish_reason=FinishReason.LENGTH),
        Example(
            "The person seems happy or s",
            "emotion-8",
            Outcome.TRUNCATED,
            finish_reason=FinishReason.LENGTH,
        ),
        Example("sad\nThe per", "emotion-8", Outcome.ANSWERED, "sad", FinishReason.LENGTH),
    ),
)
