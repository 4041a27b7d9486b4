"""What the words and columns of a report mean."""

from __future__ import annotations

from robustkit.verify.flags import FLAGS

WORDS = (
    (
        "certified, robust, clean",
        "Shares of all n points. Certified points are proved robust: a lower bound, whatever the "
        "attack. Robust points are classified correctly and no attack that ran broke them: "
        "an upper bound, which a stronger attack can lower. Clean points are classified correctly "
        "without an attack. The truth lies between certified and robust.",
    ),
    (
        "95% interval",
        "How far another sample of n points could have moved the robust accuracy: Clopper–Pearson, "
        "or, where the run ended early, a confidence sequence, which holds whenever one stops. It "
        "covers the sampling of points, not the strength of the attacks, the randomness of "
        "training or of the model.",
    ),
    (
        "rank",
        "Place among the models of one data set, norm and eps. A range such as 1-2 is a tie: exact "
        "paired tests with Holm's correction do not tell the models apart at the 5% level.",
    ),
    (
        "worst class, tail 30%",
        "Robust accuracy of the weakest class, and the mean over the weakest 30% of the classes. "
        "With few points a class both are low partly by chance.",
    ),
    (
        "model and runs",
        "A row is a model under one threat model. Where several suites or seeds were run on the "
        "same points, a point is robust only if no run broke it, and certified if a run proved it. "
        "Runs on other points are shown, not counted. Flags and verdict are those of the adaptive "
        "suite where it ran, else of all runs.",
    ),
    (
        "forward passes per point",
        "The price of the number beside it, over all runs. A weak attack is cheap and flatters.",
    ),
    (
        "suite",
        "The named line-up of attacks. A model that only a weak suite attacked looks better than "
        "it is.",
    ),
    (
        "verdict",
        "Whether the robust accuracy can be relied on, by the gravest flag: of a suspicious row it "
        "may be too high, of an unreliable one take it for too high.",
    ),
)
FLAG_GLOSSARY = tuple(
    (kind.name, f"{kind.severity.capitalize()}: {kind.raised}. {kind.remedy}")
    for kind in FLAGS.values()
)
