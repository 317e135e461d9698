"""Gender, as perceived, in the two categories of the face data sets."""

from facescan.attributes import Attribute, Example, LabelSet
from facescan.types import FinishReason, Outcome

_GENDER_2 = LabelSet(
    name="gender-2",
    labels=("Male", "Female"),
    synonyms={
        "m": "Male",
        "man": "Male",
        "men": "Male",
        "boy": "Male",
        "guy": "Male",
        "gentleman": "Male",
        "masculine": "Male",
        "f": "Female",
        "woman": "Female",
        "women": "Female",
        "girl": "Female",
        "lady": "Female",
        "feminine": "Female",
    },
    source="FairFace, UTKFace",
)

ATTRIBUTE = Attribute(
    name="gender",
    noun="gender",
    also_called=("sex",),
    label_sets=(_GENDER_2,),
    views=(),
    off_list=(
        *("non binary", "nonbinary", "androgynous", "transgender", "agender", "intersex"),
        *("gender neutral", "genderqueer", "other"),
    ),
    examples=(
        Example("Male", "gender-2", Outcome.ANSWERED, "Male"),
        Example("female", "gender-2", Outcome.ANSWERED, "Female"),
        Example("Male.", "gender-2", Outcome.ANSWERED, "Male"),
        Example("**Female**", "gender-2", Outcome.ANSWERED, "Female"),
        Example("  FEMALE\n", "gender-2", Outcome.ANSWERED, "Female"),
        Example("F", "gender-2", Outcome.ANSWERED, "Female"),
        Example("The person is a woman", "gender-2", Outcome.ANSWERED, "Female"),
        Example("This is a young boy.", "gender-2", Outcome.ANSWERED, "Male"),
        Example("The person is not male, but female.", "gender-2", Outcome.ANSWERED, "Female"),
        Example("I'm not sure, but it looks like a man.", "gender-2", Outcome.ANSWERED, "Male"),
        Example('{"gender": "Female"}', "gender-2", Outcome.ANSWERED, "Female"),
        Example('```json\n{"answer": "male"}\n```', "gender-2", Outcome.ANSWERED, "Male"),
        Example("Sex: F", "gender-2", Outcome.ANSWERED, "Female"),
        Example("\uff2d\uff41\uff4c\uff45", "gender-2", Outcome.ANSWERED, "Male"),
        Example("Male or Female", "gender-2", Outcome.AMBIGUOUS),
        Example("Male/Female", "gender-2", Outcome.AMBIGUOUS),
        Example("Non-binary", "gender-2", Outcome.OFF_LIST),
        Example("not male", "gender-2", Outcome.UNPARSED),
        Example("I'm here", "gender-2", Outcome.UNPARSED),
        Example("Malevolent", "gender-2", Outcome.UNPARSED),
        Example("34", "gender-2", Outcome.UNPARSED),
        Example("...", "gender-2", Outcome.UNPARSED),
        Example("Cannot determine", "gender-2", Outcome.ABSTAINED),
        Example("It is unclear whether this is a man.", "gender-2", Outcome.ABSTAINED),
        Example('{"gender": null}', "gender-2", Outcome.ABSTAINED),
        Example(
            "I'm sorry, but I can't help with identifying the woman in this picture.",
            "gender-2",
            Outcome.REFUSED,
        ),
        Example("I'm sorry, but I can't.", "gender-2", Outcome.REFUSED),
        Example("I'm sorry, but I can't determine that.", "gender-2", Outcome.ABSTAINED),
        Example("I\u2019m unable to provide that.", "gender-2", Outcome.REFUSED),
        Example("Male", "gender-2", Outcome.ANSWERED, "Male", FinishReason.LENGTH),
        Example(
            "The person is male. They", "gender-2", Outcome.ANSWERED, "Male", FinishReason.LENGTH
        ),
        Example(
            "The person is a man and", "gender-2", Outcome.TRUNCATED, None, FinishReason.LENGTH
        ),
        Example("Fem", "gender-2", Outcome.TRUNCATED, finish_reason=FinishReason.LENGTH),
    ),
)
