"""What each column of a leaderboard means: the words of reference/columns.md."""

COLUMNS = {
    "rank": "Place among the rows of the same data, norm, criterion and eps. A range such as `1-3` "
    "is a tie: the data do not tell these rows apart ([how it is decided]"
    "(../explanation/robust-accuracy.md#ties)).",
    "defense": "The model: a registered name with its options, an import path or a file.",
    "data": "The data set that the points were taken from; `(class-balanced)` marks `--sample "
    "balanced`, whose rows are ranked by themselves.",
    "norm": "The norm that bounds the perturbation: `linf`, `l2`, `l1` or `l0`; or the name of a "
    "finite [threat model](threats.md), such as `corruption:all`. A [criterion](criteria.md) other "
    "than untargeted follows it: `linf top5`.",
    "eps": "The bound, in units of inputs in [0, 1] (8/255, not 8); in l0 the number of features "
    "(channels of pixels) that may change; of a finite threat model the largest severity.",
    "n": "The number of points evaluated.",
    "clean": "The fraction of points classified correctly without an attack.",
    "robust": "The fraction of points that are classified correctly and for which no attack of the "
    "suite found a misclassified input inside the threat model. An upper bound on the robust "
    "accuracy against every attack.",
    "robust_low": "Lower end of the Clopper–Pearson 95% interval of `robust`, for the population "
    "that the points are a sample of.",
    "robust_high": "Upper end of that interval.",
    "audit_bound": "For suites with an audit: how much lower the attacks of the audit would put "
    "`robust` at most, with 95% confidence over the draw of the audited points (exact "
    "hypergeometric bound). 0 where they ran on every survivor, empty where there was no audit. "
    "*May miss* in tables.",
    "certified": "The fraction of points proved robust, a lower bound on the robust accuracy; "
    "empty where no certificate was asked for.",
    "worst_class": "The robust accuracy of the class where it is lowest; of equal classes the one "
    "with the lowest label.",
    "worst_class_name": "That class.",
    "tail_30": "The mean robust accuracy of the 30% of the classes where it is lowest, rounded up: "
    "3 of 10 classes.",
    "randomized": "Whether two passes of the same input through the model differ.",
    "flags": "Names of the reasons to distrust the row, joined by `;` ([flags](flags.md)).",
    "strongest_attack": "The attack that broke the most points. Each attack gets only the points "
    "that the earlier ones left robust.",
    "suite": "The named set of attacks; empty where attacks were named one by one.",
    "forwards_per_point": "Inputs passed forward through the model over the whole run, divided by "
    "n. *F/pt* in tables.",
    "backwards_per_point": "Inputs passed backward through the model over the whole run, divided "
    "by n.",
    "seconds": "Wall-clock time of the run on the device that the record names. Compare it on the "
    "same device only; passes compare anywhere.",
    "seed": "The seed of the attacks.",
    "record": "The file that this row was made from.",
    "strength": "For each attack the settings that its power depends on, and `F`, the forward "
    "passes per point that it was given, so that a weaker attack of the same name can be told "
    "apart.",
    "reliability": "The verdict of the gravest flag: `reliable`, `suspicious` (robust accuracy may "
    "be too high) or `unreliable` (take it for too high). A flag that the attacks of `adaptive` "
    "answered weighs a step less. A terminal shows no *verdict* where all rows are reliable.",
    "undecided": "The fraction of points neither proved nor broken: the width of the bracket, "
    "`robust` less `certified`. Empty where no certificate was asked for.",
    "audit_halving": "How many passes more, forward and backward, a random part of the audit "
    "that halves `audit_bound` would take, at what the audited points cost here "
    "(`fast(audit_share=...)` sets the size). Empty where there is nothing to halve.",
    "refusal": "Of a model of prompts ([language models](../howto/language-models.md)): the share "
    "of the harmful ones that are refused without an attack. This column and the next two are left "
    "out of a table in which no row has them.",
    "attack_success": "Of those prompts the share that an attack got answered: *success* in "
    "tables.",
    "over_refusal": "The share of the prompts to be answered, near misses among them, that are "
    "refused. A model that refuses everything has a success of 0 and an over-refusal of 1.",
    "mean_corrupted": "Of a finite threat model: the mean over corruptions of the mean accuracy "
    "over their severities (mCA), misclassified points included. This column and the following "
    "ones are left out of a table in which no row has them "
    "([how to read them](../howto/corruptions.md)).",
    "mean_corrupted_low": "Lower end of Student's 95% interval of that mean, with the points as "
    "the unit: the answers to the variants of one point depend on each other.",
    "mean_corrupted_high": "Upper end of that interval.",
    "severity_5": "The mean accuracy over the variants of severity 5; empty where there is none.",
    "worst_corruption": "The mean accuracy over the severities of the corruption where it is "
    "lowest.",
    "worst_corruption_name": "That corruption.",
    "corruptions": "The mean accuracy over the severities of each corruption; the record holds the "
    "verdict under each variant (`points.variants`, `record.corruptions`).",
}
