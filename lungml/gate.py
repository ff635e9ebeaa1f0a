"""Is this bundle good enough to become the one that is used?

A bundle of real scans may become `@champion`, one of synthetic scans never more than `@demo`. The rules, see `decide`,
refuse in doubt: a champion stays until another is shown to be no worse where it matters and better somewhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from lungml.candidacy import Candidacy, kind
from lungml.compare import Difference, Sampled, Statistic, against_diameter, paired_difference
from lungml.errors import LunaError
from lungml.score import finite_or_none

Alias = Literal["champion", "demo"]
NAMES: Mapping[Statistic, str] = {
    "malignant_sensitivity": "malignant sensitivity",
    "cpm": "CPM",
    "malignancy_auc": "malignancy AUC",
    "diameter_auc": "AUC of the diameter alone",
    "malignant_false_positives": "false malignant findings",
}
COMPARED: tuple[Statistic, ...] = ("malignant_sensitivity", "cpm", "malignancy_auc", "malignant_false_positives")
NEEDED: tuple[Statistic, ...] = ("malignant_sensitivity", "cpm", "malignancy_auc", "diameter_auc")
FACTS = ("whole", "unseen", "scans")  # what even a demo's first bundle must fulfil
FORMALITIES = ("comparable", "champion_metrics")  # no reason to promote anything


class GateError(LunaError):
    """The gate's settings cannot be; the message is one line."""


@dataclass(frozen=True, kw_only=True)
class GateSettings:
    """What a challenger must reach.

    Attributes:
        margin: of malignant sensitivity: how much less than the champion's would still do.
        max_set_aside_share: of the test scans, how many may have been set aside unread.
        fewest_malignant: malignant nodules of the test scans; with fewer two bundles that flag the same handful would
            pass for equal, and the bootstrap, which only knows that handful, would agree.
        proven_gain: a gain counts only when its whole band lies above 0; without it any gain counts.
        least_malignant_sensitivity: of a first champion: the report's own, 16 of 32 on its test scans.
        least_cpm: the same; ours, for the report states none.
        least_malignancy_auc: the same; ours, below the 0.896 of the report's weaker model on its test scans.

    Raises:
        GateError: when one is no share, or no malignant nodule is asked for.
    """

    margin: float = 0.05
    max_set_aside_share: float = 0.02
    fewest_malignant: int = 10
    proven_gain: bool = True
    least_malignant_sensitivity: float = 0.5
    least_cpm: float = 0.5
    least_malignancy_auc: float = 0.8

    def __post_init__(self) -> None:
        shares = ("margin", "max_set_aside_share", *(f"least_{name}" for name in self.floors))
        for name in shares:
            if not 0 <= getattr(self, name) <= 1:
                raise GateError(f"the gate's {name} is {getattr(self, name)}; give a number from 0 to 1")
        if self.fewest_malignant < 1:
            raise GateError(f"the gate's fewest_malignant is {self.fewest_malignant}; give 1 or more")

    @property
    def floors(self) -> Mapping[Statistic, float]:
        """What a first champion must reach."""
        return {
            "malignant_sensitivity": self.least_malignant_sensitivity,
            "cpm": self.least_cpm,
            "malignancy_auc": self.least_malignancy_auc,
        }


@dataclass(frozen=True, kw_only=True)
class Check:
    """One question of the gate: whether it was passed, in words and numbers."""

    name: str
    passed: bool
    words: str
    numbers: Mapping[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able; None for what is no finite number."""
        numbers = {name: finite_or_none(value) for name, value in self.numbers.items()}
        return {"name": self.name, "passed": self.passed, "words": self.words, "numbers": numbers}


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What became of a challenger.

    Attributes:
        challenger, champion: their URIs; None where there was none to beat.
        alias: the only one that the challenger could get.
        promoted: whether it gets it.
        reasons: one line each.
        checks: all that were made.
    """

    challenger: str
    champion: str | None
    alias: Alias
    promoted: bool
    reasons: tuple[str, ...]
    checks: tuple[Check, ...]

    @property
    def verdict(self) -> str:
        """What became of the challenger, without its name."""
        return f"becomes @{self.alias}" if self.promoted else f"does not become @{self.alias}"

    @property
    def words(self) -> str:
        """In one line."""
        return f"{self.challenger} {self.verdict}: {'; '.join(self.reasons)}"

    def unmoved(self, why: str) -> Decision:
        """What is left of a promotion when the alias could not be moved: a refusal."""
        words = f"could not become @{self.alias}: {why}"
        moved = Check(name="moved", passed=False, words=words)
        return replace(self, promoted=False, reasons=(words,), checks=(*self.checks, moved))

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "challenger": self.challenger,
            "champion": self.champion,
            "alias": self.alias,
            "promoted": self.promoted,
            "reasons": list(self.reasons),
            "checks": [check.as_dict() for check in self.checks],
        }


def decide(challenger: Candidacy, champion: Candidacy | None, settings: GateSettings | None = None) -> Decision:
    """Let the challenger take the champion's place, or not.

    Whoever stands against it, a challenger must be whole and of one kind, must not have seen the test scans, must be
    judged on real scans if it is to be champion, with no more of them set aside than the limit, on enough malignant
    nodules, and with every metric: one that is not a number, or not on half of the resamples, is missing.

    Against a champion both must have been scored on the same resamples of the same scans. That the champion saw some
    of them is said and refuses nothing: it can only be the harder to beat. Then, by 95 % bands of the paired
    differences (challenger less champion) over whole scans:

    * malignant sensitivity is not inferior: its band lies above -margin;
    * neither CPM nor malignancy AUC is worse beyond chance (its band lies below 0), and at least one of the two is not
      lower as it was observed;
    * something is gained: CPM, malignancy AUC or malignant sensitivity is better beyond chance (its band lies above
      0), or better at all where the settings ask for no proof. Malignant sensitivity counts only where false malignant
      findings are not more beyond chance: a lower threshold alone buys the one with the other.

    That a tie is refused follows. Three chances of a gain by luck, of 2.5 % each, are not corrected for. Few scans
    leave wide bands: they refuse rather than promote, and the reasons say so.

    Without a champion, the malignancy AUC must lie above that of the annotated diameter on the same nodules, as
    observed, beyond chance or not (said), and each floor of the settings must be reached.

    A bundle of synthetic scans is judged alike against the present `@demo`. Without one it becomes `@demo` if it is
    whole and its test scans are new to it, and the reasons say what it would have needed otherwise.
    """
    settings = settings or GateSettings()
    alias: Alias = "demo" if challenger.origin == "phantom" else "champion"
    flattered = [f"the score of {champion.uri} may flatter it: {leak}" for leak in champion.leaks] if champion else []
    facts = [
        _told("whole", challenger.flaws, "its models are all there and of one kind"),
        _told("unseen", challenger.leaks, "none of its models has seen the test scans"),
        _check_scans(challenger),
        _check_set_aside(challenger, settings),
        _check_malignant(challenger, settings),
        _check_metrics("metrics", challenger),
    ]
    scores = _first(challenger, settings) if champion is None else _against(challenger, champion, alias, settings)
    failed = [check for check in (*facts, *scores) if not check.passed]
    promoted = not failed
    reasons = [check.words for check in failed or scores if failed or check.name not in FORMALITIES]
    if alias == "demo" and champion is None and not any(check.name in FACTS for check in failed):
        promoted = True
        needed = [f"with one to beat it would have failed: {check.words}" for check in failed]
        reasons = ["the first bundle of synthetic scans becomes @demo as it is", *needed]
    return Decision(
        challenger=challenger.uri,
        champion=champion.uri if champion else None,
        alias=alias,
        promoted=promoted,
        reasons=(*reasons, *flattered),
        checks=(*facts, *scores),
    )


def _told(name: str, problems: Sequence[str], otherwise: str) -> Check:
    return Check(name=name, passed=not problems, words="; ".join(problems) or otherwise)


def _check_scans(challenger: Candidacy) -> Check:
    words = f"judged on {len(challenger.series_uids)} {kind(challenger.scans)}"
    fits = challenger.origin == "phantom" or challenger.scans == "real"
    if not fits:
        words += ": a champion is judged on real ones"
    if not challenger.series_uids:
        words = "judged on no scan"
    return Check(name="scans", passed=fits and bool(challenger.series_uids), words=words)


def _check_set_aside(challenger: Candidacy, settings: GateSettings) -> Check:
    count, scans = challenger.set_aside, len(challenger.series_uids)
    share = count / scans if scans else 0.0
    limit = settings.max_set_aside_share
    return Check(
        name="set_aside",
        passed=share <= limit,
        words=f"{count} of {scans} test scans set aside ({share:.1%}; at most {limit:.1%})",
        numbers={"set_aside": count, "scans": scans, "share": share, "limit": limit},
    )


def _check_malignant(challenger: Candidacy, settings: GateSettings) -> Check:
    count, fewest = challenger.malignant, settings.fewest_malignant
    words = f"{count} malignant test nodules"
    if count < fewest:
        words += f" are too few to tell anything; at least {fewest} are needed: judge on more scans"
    return Check(
        name="malignant", passed=count >= fewest, words=words, numbers={"malignant": count, "at_least": fewest}
    )


def _missing(samples: Mapping[Statistic, Sampled]) -> list[Statistic]:
    """What is no number on these scans, or one that they say too little of."""
    wanted = dict.fromkeys((*NEEDED, *COMPARED))
    return [name for name in wanted if not _is_number(samples, name) or not samples[name].tells]


def _is_number(samples: Mapping[Statistic, Sampled], name: Statistic) -> bool:
    return name in samples and math.isfinite(samples[name].observed)


def _check_metrics(name: str, candidacy: Candidacy) -> Check:
    missing = _missing(candidacy.samples)
    absent = [metric for metric in missing if not _is_number(candidacy.samples, metric)]
    vague = [metric for metric in missing if metric not in absent]
    words = []
    if absent:
        words.append(f"{candidacy.uri} has no {_named(absent)} on these scans")
    if vague:
        every = len(vague) == len({*NEEDED, *COMPARED})
        which = "any metric" if every else _named(vague)
        words.append(f"these scans say too little of {which} of {candidacy.uri}: judge on more scans")
    return Check(name=name, passed=not missing, words="; ".join(words) or f"{candidacy.uri} has every metric")


def _named(metrics: Sequence[Statistic]) -> str:
    return ", ".join(NAMES[metric] for metric in metrics)


def _first(challenger: Candidacy, settings: GateSettings) -> list[Check]:
    """Floors and the diameter baseline; what has no score was told before."""
    missing = _missing(challenger.samples)
    checks = []
    for name, floor in settings.floors.items():
        if name in missing:
            continue
        value = challenger.samples[name].observed
        side = "reaches" if value >= floor else "is below"
        checks.append(
            Check(
                name=f"least_{name}",
                passed=value >= floor,
                words=f"{NAMES[name]} {value:.3f} {side} the floor of {floor:g}",
                numbers={"challenger": value, "floor": floor},
            )
        )
    if "malignancy_auc" not in missing and "diameter_auc" not in missing:
        over = against_diameter(challenger.samples)
        words = f"malignancy AUC {over.second:.3f} against {over.first:.3f} of the diameter alone, {_band_words(over)}"
        if over.difference <= 0:
            words += ": the model adds nothing to the diameter"
        elif over.band[0] <= 0:
            words += ": better, which may be chance"
        checks.append(
            Check(name="over_diameter", passed=over.difference > 0, words=words, numbers=_numbers(over, "diameter"))
        )
    return checks


def _against(challenger: Candidacy, champion: Candidacy, alias: Alias, settings: GateSettings) -> list[Check]:
    """Whether the two can be compared, and if so, how they do."""
    unlike = _unlike(challenger, champion, alias)
    checks = [Check(name="comparable", passed=not unlike, words=unlike or "both judged on the same scans")]
    if unlike:
        return checks
    metrics = _check_metrics("champion_metrics", champion)
    if not metrics.passed or _missing(challenger.samples):
        return [*checks, metrics]
    differences = {name: paired_difference(champion.samples[name], challenger.samples[name]) for name in COMPARED}
    return [
        *checks,
        metrics,
        _not_inferior(differences["malignant_sensitivity"], challenger.malignant, settings.margin),
        *(_not_worse(name, differences[name]) for name in ("cpm", "malignancy_auc")),
        _one_not_lower(differences),
        _gain(differences, settings),
    ]


def _unlike(challenger: Candidacy, champion: Candidacy, alias: Alias) -> str:
    """Why two bundles cannot be compared; empty when they can."""
    if challenger.uri == champion.uri:
        return f"it is @{alias} already"
    if champion.origin != challenger.origin:
        return f"{champion.uri} is a bundle of {kind(champion.origin)}"
    if not champion.samples:
        return f"{champion.uri} was not scored on these scans"
    own, other = challenger.series_uids, champion.series_uids
    if own != other:
        alone = len(set(own) ^ set(other))
        how = f"{alone} scans were judged by one alone" if alone else "in another order, so that no resample is paired"
        return f"{champion.uri} was not judged on the same scans: {how}"
    for name in COMPARED:
        pair = [one.samples[name].resampled for one in (challenger, champion) if name in one.samples]
        if len(pair) == 2 and len(pair[0]) != len(pair[1]):
            return f"{champion.uri} was resampled {len(pair[1])} times, the challenger {len(pair[0])}"
    return ""


def _not_inferior(difference: Difference, malignant: int, margin: float) -> Check:
    words = _compared("malignant_sensitivity", difference)
    passed = difference.band[0] > -margin
    if passed:
        words += f", within the margin of {margin:g}"
    elif difference.difference < -margin:
        words += f", lower by more than the margin of {margin:g}"
    else:
        words += (
            f", which reaches the margin of {margin:g}: {malignant} malignant nodules are too few to rule that out, "
            "judge on more scans"
        )
    return Check(
        name="malignant_sensitivity",
        passed=passed,
        words=words,
        numbers={**_numbers(difference), "margin": margin, "malignant": malignant},
    )


def _not_worse(name: Statistic, difference: Difference) -> Check:
    worse = difference.band[1] < 0
    words = _compared(name, difference) + (", worse beyond chance" if worse else "")
    return Check(name=name, passed=not worse, words=words, numbers=_numbers(difference))


def _one_not_lower(differences: Mapping[Statistic, Difference]) -> Check:
    kept = [NAMES[name] for name in ("cpm", "malignancy_auc") if differences[name].difference >= 0]
    words = f"not lower: {' and '.join(kept)}" if kept else "both CPM and malignancy AUC are lower than the champion's"
    return Check(name="one_not_lower", passed=bool(kept), words=words)


def _gain(differences: Mapping[Statistic, Difference], settings: GateSettings) -> Check:
    def better(name: Statistic) -> bool:
        return (differences[name].band[0] if settings.proven_gain else differences[name].difference) > 0

    gained = [NAMES[name] for name in ("cpm", "malignancy_auc") if better(name)]
    bought = ""
    if better("malignant_sensitivity"):
        if differences["malignant_false_positives"].band[0] > 0:
            bought = f" ({_compared('malignant_false_positives', differences['malignant_false_positives'], 0)})"
        else:
            gained.append(NAMES["malignant_sensitivity"])
    proof = " beyond chance" if settings.proven_gain else ""
    if gained:
        words = f"better{proof}: {', '.join(gained)}"
    elif bought:
        words = f"nothing is gained: more malignant sensitivity was bought with false malignant findings{bought}"
    else:
        words = f"nothing is gained: neither CPM, malignancy AUC nor malignant sensitivity is better{proof}"
    return Check(name="gain", passed=bool(gained), words=words)


def _compared(name: Statistic, difference: Difference, digits: int = 3) -> str:
    return (
        f"{NAMES[name]} {difference.second:.{digits}f} against {difference.first:.{digits}f}, "
        f"{_band_words(difference, digits)}"
    )


def _band_words(difference: Difference, digits: int = 3) -> str:
    low, high = difference.band
    return f"{difference.difference:+.{digits}f} (95 % band {low:+.{digits}f} to {high:+.{digits}f})"


def _numbers(difference: Difference, other: str = "champion") -> dict[str, float]:
    return {
        "challenger": difference.second,
        other: difference.first,
        "difference": difference.difference,
        "low": difference.band[0],
        "high": difference.band[1],
        "p_value": difference.p_value,
    }
